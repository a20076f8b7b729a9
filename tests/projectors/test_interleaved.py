"""The interleaving projector: whose token stands where."""

import pytest
import torch

from weft.core.errors import ConfigError
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.projectors.interleaved import Interleaved
from weft.projectors.linear import Linear
from weft.projectors.pixel_shuffle import PixelShuffle

GRID = MediaLayout(2, 3)


def labelled(items: int, first_width: int, second_width: int, layout: MediaLayout = GRID) -> MediaFeatures:
    """Every channel of the first encoder says 1000 + place, every one of the second 2000 + place, counted through."""
    units = items * layout.num_units
    place = torch.arange(units * layout.height * layout.width, dtype=torch.float32).view(units, -1, 1)
    values = torch.cat((1000 + place.expand(-1, -1, first_width), 2000 + place.expand(-1, -1, second_width)), -1)
    return MediaFeatures(values, torch.arange(units) // layout.num_units, (layout,) * items)


def reading(config: Interleaved.Config, input_width: int) -> Interleaved:
    """Linear projectors that copy their first channel."""
    projector = config.build(input_width, 1)
    for part in (projector.first, projector.second):
        torch.nn.init.zeros_(part.linear.weight)[0, 0] = 1
        torch.nn.init.zeros_(part.linear.bias)
    return projector


@pytest.mark.parametrize(("widths", "first_width"), [((4, 4), None), ((3, 5), 3)], ids=["halves", "other widths"])
@pytest.mark.parametrize("layout", [GRID, MediaLayout(2, 3, frames=2)], ids=["pictures", "frames"])
def test_the_tokens_of_a_place_stand_together_the_first_encoder_s_before_the_second_s(widths, first_width, layout):
    config = Interleaved.Config(inner=Linear.Config(), first_width=first_width)
    with torch.no_grad():
        tokens = reading(config, sum(widths))(labelled(2, *widths, layout))
    places = range(2 * layout.positions)
    assert tokens.values[:, 0].tolist() == [label + place for place in places for label in (1000, 2000)]
    assert tokens.item.tolist() == [item for item in (0, 1) for _ in range(2 * layout.positions)]


@pytest.mark.parametrize("inner", [Linear.Config(), PixelShuffle.Config()], ids=["linear", "pixel shuffle"])
def test_taken_apart_again_the_tokens_are_those_of_each_encoder_alone(inner):
    torch.manual_seed(0)
    layout = MediaLayout(4, 4)
    projector = Interleaved.Config(inner=inner).build(16, 6)
    values = torch.randn(3, 16, 16)
    item, layouts = torch.tensor([0, 1, 1]), (layout, MediaLayout(4, 4, frames=2))
    with torch.no_grad():
        tokens = projector(MediaFeatures(values, item, layouts))
        one = projector.first(MediaFeatures(values[..., :8], item, layouts))
        other = projector.second(MediaFeatures(values[..., 8:], item, layouts))
    assert torch.equal(tokens.values[0::2], one.values) and torch.equal(tokens.values[1::2], other.values)
    assert torch.equal(tokens.item[0::2], one.item) and torch.equal(tokens.item[1::2], other.item)
    assert len(tokens.values) == sum(projector.config.num_tokens(layout) for layout in layouts)


def test_576_places_become_1152_tokens():
    assert Interleaved.Config().num_tokens(MediaLayout(24, 24)) == 1152


def test_the_two_projectors_are_not_one():
    projector = Interleaved.Config.tiny().build(8, 4)
    shared = {id(p) for p in projector.first.parameters()} & {id(p) for p in projector.second.parameters()}
    assert not shared and {name.partition(".")[0] for name, _ in projector.named_parameters()} == {"first", "second"}


@pytest.mark.parametrize(("first_width", "width"), [(None, 7), (8, 8), (0, 8)])
def test_channels_that_do_not_split_are_refused_before_anything_is_built(first_width, width):
    with pytest.raises(ConfigError, match="first_width"):
        Interleaved.Config(first_width=first_width).build(width, 4)
