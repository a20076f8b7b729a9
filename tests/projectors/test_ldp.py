"""MobileVLM's projectors: halved and pooled grids, and features that are none."""

import pytest
import torch
import torch.nn.functional as F

from weft.core.errors import ConfigError
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.projectors.average_pooling import AveragePooling
from weft.projectors.ldp import LDP, round_to_eight
from weft.projectors.ldpv2 import LDPv2

WIDTH, OUT = 6, 16


def features(*layouts):
    values = torch.randn(len(layouts), layouts[0].positions, WIDTH, generator=torch.Generator().manual_seed(0))
    return MediaFeatures(values, torch.arange(len(layouts)), layouts)


@pytest.mark.parametrize(("grid", "tokens"), [((24, 24), 144), ((27, 27), 196), ((3, 5), 6), ((2, 1), 1)])
def test_ldp_halves_both_sides_and_rounds_up(grid, tokens):
    layout = MediaLayout(*grid)
    assert LDP.Config().num_tokens(layout) == tokens == len(LDP.Config().build(WIDTH, OUT)(features(layout)).values)


def test_units_of_one_length_on_other_grids_become_other_numbers_of_tokens():
    layouts = (MediaLayout(3, 8), MediaLayout(4, 6), MediaLayout(8, 3))
    tokens = LDP.Config().build(WIDTH, OUT).eval()(features(*layouts))
    assert tokens.item.bincount().tolist() == [LDP.Config().num_tokens(layout) for layout in layouts] == [8, 6, 8]


@pytest.mark.parametrize("config", [LDP.Config(), LDPv2.Config()])
def test_a_class_token_among_the_features_is_refused(config):
    with pytest.raises(ConfigError, match=r"needs a grid of features, got a row of 577; leave the encoder's class token out"):
        config.num_tokens(MediaLayout(1, 577))


def test_ldpv2_without_its_convolution_is_an_mlp_and_average_pooling():
    torch.manual_seed(0)
    projector = LDPv2.Config(side=3).build(WIDTH, OUT).eval()
    inputs = features(MediaLayout(7, 7), MediaLayout(7, 7))
    with torch.no_grad():
        projector.position.weight.zero_()
        projector.position.bias.zero_()
        hidden = projector.down(F.gelu(projector.up(inputs.values)))
        pooled = AveragePooling.Config(side=3).build(OUT, OUT).pool(MediaFeatures(hidden, inputs.unit_item, inputs.layout))
        assert torch.equal(projector(inputs).values, pooled.flatten(0, 1))


def test_ldpv2_does_not_invent_tokens_for_a_smaller_grid():
    with pytest.raises(ConfigError, match=r"LDPv2 to 12x12 needs a grid of at least that, got 11x24"):
        LDPv2.Config().num_tokens(MediaLayout(11, 24))


@pytest.mark.parametrize(("channels", "rounded"), [(512, 512), (640, 640), (10, 16), (12, 16), (11, 16), (20, 24), (60, 64)])
def test_channels_are_counted_in_eights_as_mobilenet_does(channels, rounded):
    assert round_to_eight(channels) == rounded
