"""MM1's average pooling, over grids that the side divides and others."""

import math

import pytest
import torch

from weft.core.errors import ConfigError
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.projectors.average_pooling import AveragePooling

GRIDS = [(4, 4), (6, 4), (5, 7), (7, 7), (24, 24), (27, 27)]


def pooled(side, height, width, values):
    projector = AveragePooling.Config(side=side).build(values.shape[-1], 6)
    features = MediaFeatures(values, torch.arange(len(values)), (MediaLayout(height, width),) * len(values))
    return projector.pool(features)


@pytest.mark.parametrize("side", [1, 2, 3, 4])
@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_a_token_is_the_mean_over_its_cell(side, height, width):
    values = torch.randn(2, height * width, 5, generator=torch.Generator().manual_seed(0))
    found = pooled(side, height, width, values)
    grid = values.view(2, height, width, 5)
    for i in range(side):
        for j in range(side):
            rows = slice(i * height // side, math.ceil((i + 1) * height / side))
            columns = slice(j * width // side, math.ceil((j + 1) * width / side))
            mean = grid[:, rows, columns].mean((1, 2))
            torch.testing.assert_close(found[:, i * side + j], mean, rtol=0, atol=1e-6)  # float32 sums in another order


@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_a_constant_grid_stays_constant_for_every_side(height, width):
    for side in range(1, min(height, width) + 1):
        found = pooled(side, height, width, torch.full((1, height * width, 3), 0.5))  # sums of 0.5 are exact
        assert torch.equal(found, torch.full((1, side * side, 3), 0.5))


def test_at_the_grids_own_size_pooling_is_the_identity():
    values = torch.randn(3, 49, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pooled(7, 7, 7, values), values)


def test_behind_the_pooling_stands_one_linear_layer():
    projector = AveragePooling.Config(side=1).build(5, 6)
    values = torch.randn(1, 12, 5, generator=torch.Generator().manual_seed(0))
    features = MediaFeatures(values, torch.zeros(1, dtype=torch.long), (MediaLayout(3, 4),))
    expected = values.mean(1) @ projector.linear.weight.T + projector.linear.bias
    torch.testing.assert_close(projector(features).values, expected, rtol=0, atol=1e-6)


def test_a_grid_smaller_than_the_side_is_an_error_before_anything_is_computed():
    config = AveragePooling.Config()
    assert config.num_tokens(MediaLayout(24, 24)) == 144
    for layout in (MediaLayout(1, 577), MediaLayout(24, 11)):
        with pytest.raises(ConfigError, match=rf"12x12 needs a grid of at least that, got {layout.height}x{layout.width}"):
            config.num_tokens(layout)
