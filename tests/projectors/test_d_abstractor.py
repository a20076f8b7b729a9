"""The D-Abstractor: where its points begin, what it reads there, and its precision."""

import pytest
import torch

from weft.core.errors import ConfigError
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.layers.deformable_attention import DeformableAttention
from weft.projectors.d_abstractor import DAbstractor, even_points

WIDTH = 8
TINY = DAbstractor.Config.tiny()


def features(count=2, seed=0):
    values = torch.randn(count, 16, WIDTH, generator=torch.Generator().manual_seed(seed))
    return MediaFeatures(values, torch.arange(count), (MediaLayout(4, 4),) * count)


@pytest.mark.parametrize(("grid_side", "side"), [(16, 12), (24, 12), (5, 3), (4, 4)])
def test_the_points_begin_on_an_even_grid_inside_the_picture(grid_side, side):
    points = DAbstractor.Config(grid_side=grid_side, side=side, num_layers=1).build(WIDTH, WIDTH).reference_points
    assert points.shape == (side**2, 2) and (points > 0).all() and (points < 1).all()
    step = (grid_side - 1) / (side - 1) / grid_side
    for row in range(side):
        for column in range(side):
            expected = (0.5 / grid_side + column * step, 0.5 / grid_side + row * step)  # (x, y)
            assert points[row * side + column].tolist() == pytest.approx(expected, abs=1e-6)


def test_as_many_points_as_features_stand_on_the_features():
    """With offsets of zero and the value as it is, every query reads exactly the feature below it."""
    attention = DeformableAttention(WIDTH, num_heads=2, num_points=3)
    with torch.no_grad():
        attention.offsets.bias.zero_()
        for layer in (attention.value, attention.output):
            layer.weight.copy_(torch.eye(WIDTH))
    grid = torch.randn(2, WIDTH, 5, 5, generator=torch.Generator().manual_seed(0))
    read = attention(torch.randn(2, 25, WIDTH), even_points(5, 5).expand(2, -1, -1), grid)
    torch.testing.assert_close(read, grid.flatten(2).transpose(1, 2), rtol=0, atol=1e-5)  # places are off by float rounding


def test_at_first_every_head_looks_in_its_own_direction_and_points_go_outwards():
    offsets = DeformableAttention(WIDTH, num_heads=4, num_points=3).offsets
    assert (offsets.weight == 0).all()
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    expected = directions[:, None] * torch.arange(1, 4)[:, None]
    torch.testing.assert_close(offsets.bias.view(4, 3, 2), expected, rtol=0, atol=1e-5)  # cosines of float32


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    projector = TINY.build(WIDTH, 12)
    still = projector.eval()(features()).values
    assert torch.equal(still, projector(features()).values)
    assert not torch.equal(projector.train()(features()).values, projector(features()).values)


def test_places_keep_their_precision_in_bfloat16():
    """Points of a map of 24 would move by a twentieth of a feature in bfloat16; they are computed in float32."""
    torch.manual_seed(0)
    attention = DeformableAttention(WIDTH, num_heads=2, num_points=2)
    grid = torch.arange(24.0).view(1, 1, 1, 24).expand(1, WIDTH, 24, 24) / 32  # the value is the column, exact in 8 bits
    with torch.no_grad():
        attention.offsets.bias.zero_()
        for layer in (attention.value, attention.output):
            layer.weight.copy_(torch.eye(WIDTH))
    half = attention.bfloat16()
    points = even_points(24, 24)[None]
    read = half(torch.zeros(1, 576, WIDTH, dtype=torch.bfloat16), points, grid.bfloat16())
    assert read.dtype == torch.bfloat16
    assert (read[0, :, 0].float().view(24, 24) - grid[0, 0]).abs().max() < 1e-5
    assert (
        TINY.build(WIDTH, 12)
        .eval()
        .bfloat16()(MediaFeatures(features().values.bfloat16(), torch.arange(2), (MediaLayout(4, 4),) * 2))
        .values.isfinite()
        .all()
    )


def test_a_model_of_the_features_width_has_no_output_matrix():
    assert isinstance(TINY.build(WIDTH, WIDTH).output, torch.nn.Identity)
    assert TINY.build(WIDTH, 12).output.weight.shape == (12, WIDTH)


def test_other_grids_and_widths_are_refused():
    with pytest.raises(ConfigError, match="grid of 4x4, got 5x4"):
        TINY.num_tokens(MediaLayout(5, 4))
    with pytest.raises(ConfigError, match="width 9 does not split into 2 heads"):
        TINY.build(9, 12)
