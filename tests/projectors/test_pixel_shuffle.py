"""Neighbours on channels: nothing lost, nothing moved but as the published orders say."""

import pytest
import torch
import torch.nn.functional as F

from weft.core.errors import ConfigError
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.layers.feature_grid import by_columns, merge_neighbours, pad_grid, to_channels_first, to_channels_last
from weft.projectors.mlp_downsample import MLPDownsample
from weft.projectors.pixel_shuffle import PixelShuffle

GRIDS = [(4, 4), (2, 6), (6, 4), (8, 2)]


def values_of(height, width, channels=3, count=2):
    return torch.randn(count, height * width, channels, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_merging_is_a_bijection(height, width):
    values = values_of(height, width)
    merged = merge_neighbours(values, height, width, 2)
    back = torch.empty_like(values).view(2, height, width, 3)
    for number in range(merged.shape[1]):
        row, column = 2 * (number // (width // 2)), 2 * (number % (width // 2))
        back[:, row : row + 2, column : column + 2] = merged[:, number].view(2, 2, 2, 3)
    assert torch.equal(back.flatten(1, 2), values)


@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_it_differs_from_pixel_unshuffle_by_the_order_of_channels_only(height, width):
    values = values_of(height, width)
    merged = merge_neighbours(values, height, width, 2).unflatten(2, (4, 3))
    unshuffled = to_channels_last(F.pixel_unshuffle(to_channels_first(values, height, width), 2)).unflatten(2, (3, 4))
    assert torch.equal(merged, unshuffled.transpose(2, 3))


@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_the_first_version_is_the_second_with_rows_and_columns_exchanged(height, width):
    torch.manual_seed(0)
    second = PixelShuffle.Config().build(3, 8).eval()
    first = PixelShuffle.Config(order="columns").build(3, 8).eval()
    first.load_state_dict(second.state_dict())
    features = MediaFeatures(values_of(height, width), torch.arange(2), (MediaLayout(height, width),) * 2)
    with torch.no_grad():
        rows = second(features).values.view(2, height // 2, width // 2, 8)
        columns = first(features).values.view(2, width // 2, height // 2, 8)
    assert torch.equal(rows.transpose(1, 2), columns)
    assert torch.equal(by_columns(rows.flatten(1, 2), height // 2, width // 2), columns.flatten(1, 2))


def test_parameters_and_their_first_values_come_in_this_order():
    """A recipe's seed means the same weights from version to version."""
    torch.manual_seed(3)
    projector = PixelShuffle.Config(ratio=2).build(3, 8)
    torch.manual_seed(3)
    up, down = torch.nn.Linear(12, 8), torch.nn.Linear(8, 8)
    names = ["norm.weight", "norm.bias", "up.weight", "up.bias", "down.weight", "down.bias"]
    assert [name for name, _ in projector.named_parameters()] == names
    assert torch.equal(projector.up.weight, up.weight) and torch.equal(projector.down.weight, down.weight)


def test_a_grid_that_does_not_divide_is_refused_with_a_projector_that_pads():
    with pytest.raises(ConfigError, match="ratio 2 needs a grid that it divides, got 27x27; MLPDownsample pads such a grid"):
        PixelShuffle.Config().num_tokens(MediaLayout(27, 27))
    assert MLPDownsample.Config().num_tokens(MediaLayout(27, 27)) == 196


@pytest.mark.parametrize(("height", "width", "padded"), [(3, 5, (4, 6)), (4, 4, (4, 4)), (27, 27, (28, 28))])
def test_padding_adds_zeros_below_and_to_the_right(height, width, padded):
    values = values_of(height, width)
    found, rows, columns = pad_grid(values, height, width, 2)
    assert (rows, columns) == padded
    grid = found.view(2, rows, columns, 3)
    assert torch.equal(grid[:, :height, :width].flatten(1, 2), values)
    assert (grid[:, height:] == 0).all() and (grid[:, :, width:] == 0).all()


def test_on_a_grid_that_divides_vilas_projector_is_internvls():
    torch.manual_seed(0)
    shuffle = PixelShuffle.Config().build(3, 8).eval()
    downsample = MLPDownsample.Config(order="rows").build(3, 8).eval()
    downsample.load_state_dict(shuffle.state_dict())
    features = MediaFeatures(values_of(4, 6), torch.arange(2), (MediaLayout(4, 6),) * 2)
    with torch.no_grad():
        assert torch.equal(shuffle(features).values, downsample(features).values)
