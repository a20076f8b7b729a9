"""The C-Abstractor: what a token can see, and which grids it takes."""

import pytest
import torch

from weft.core.errors import ConfigError
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.layers.feature_grid import to_channels_first
from weft.layers.regnet_stage import regnet_stage
from weft.projectors.c_abstractor import CAbstractor

WIDTH = 8


def test_a_stage_sees_seven_by_seven_places_and_the_rest_through_squeeze_excite_alone():
    """Three 3 x 3 convolutions, with the gates held open."""
    torch.manual_seed(0)
    stage = regnet_stage(WIDTH, depth=3, norm_eps=1e-5).eval()
    for block in stage:
        block.squeeze_excite.forward = lambda x: torch.ones(1, 1, 1, 1)
    grid = torch.randn(1, WIDTH, 15, 15)
    other = grid.clone()
    other[..., 7, 7] += 1
    with torch.no_grad():
        moved = (stage(grid) - stage(other)).abs().sum(1)[0] > 0
    assert moved[4:11, 4:11].all()
    moved[4:11, 4:11] = False
    assert not moved.any()


def test_through_squeeze_excite_every_place_matters_everywhere():
    torch.manual_seed(0)
    stage = regnet_stage(WIDTH, depth=1, norm_eps=1e-5).eval()
    grid = torch.randn(1, WIDTH, 9, 9)
    other = grid.clone()
    other[..., 0, 0] += 5
    with torch.no_grad():
        assert ((stage(grid) - stage(other)).abs().sum(1) > 0).all()


@pytest.mark.parametrize(("grid_side", "side"), [(4, 2), (5, 3), (7, 2), (6, 6)])
def test_it_has_side_squared_tokens_of_its_own_grid(grid_side, side):
    config = CAbstractor.Config(grid_side=grid_side, side=side, depth=1)
    layout = MediaLayout(grid_side, grid_side)
    features = MediaFeatures(torch.randn(3, grid_side**2, WIDTH), torch.arange(3), (layout,) * 3)
    assert config.build(WIDTH, 12)(features).values.shape == (3 * side**2, 12)
    assert config.num_tokens(layout) == side**2


@pytest.mark.parametrize("layout", [MediaLayout(24, 24), MediaLayout(8, 32), MediaLayout(1, 257)], ids=str)
def test_another_grid_is_refused_with_both_sizes_and_the_way_out(layout):
    with pytest.raises(ConfigError, match=rf"grid of 16x16, got {layout.height}x{layout.width}; set grid_side"):
        CAbstractor.Config(grid_side=16).num_tokens(layout)


def test_the_learned_positions_tell_places_apart():
    """Equal features everywhere become equal tokens only where there are no positions; the borders are away from the middle."""
    torch.manual_seed(0)
    projector = CAbstractor.Config(grid_side=12, side=12, depth=1).build(WIDTH, 12).eval()
    features = MediaFeatures(torch.ones(1, 144, WIDTH), torch.zeros(1, dtype=torch.long), (MediaLayout(12, 12),))
    with torch.no_grad():
        told = projector(features).values.view(12, 12, 12)[4:8, 4:8].flatten(0, 1)
        projector.position.zero_()
        same = projector(features).values.view(12, 12, 12)[4:8, 4:8].flatten(0, 1)
    assert torch.allclose(same, same[:1].expand_as(same), atol=1e-6) and (told.diff(dim=0).abs().amax(1) > 1e-4).all()


def test_channels_stand_where_their_features_stood():
    values = torch.arange(6.0)[None, :, None]
    assert to_channels_first(values, 2, 3)[0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
