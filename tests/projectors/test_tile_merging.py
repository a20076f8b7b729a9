"""Tiles as one map: what unpadding keeps, where newlines stand, and what can stand inside."""

import dataclasses

import pytest
import torch

from weft.core.errors import ConfigError
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.layers.tile_map import stitch, token_grid, units_as_items, unpadding
from weft.projectors.c_abstractor import CAbstractor
from weft.projectors.global_local_tiles import GlobalLocalTiles
from weft.projectors.ldp import LDP
from weft.projectors.linear import Linear
from weft.projectors.mlp_downsample import MLPDownsample
from weft.projectors.pixel_shuffle import PixelShuffle
from weft.projectors.tiles import Tiles

SIDE, WIDTH = 4, 5


def tiled(rows, columns, picture_size=(60, 40), thumbnail="first", side=SIDE):
    return MediaLayout(side, side, tile_rows=rows, tile_columns=columns, thumbnail=thumbnail, picture_size=picture_size)


def numbered(*layouts):
    """Every feature is its (unit, row, column) in its picture, twice nothing."""
    values = []
    for layout in layouts:
        for unit in range(layout.num_units):
            for row in range(layout.height):
                values += [[unit, row, column, 0.0, 0.0] for column in range(layout.width)]
    units = sum(layout.num_units for layout in layouts)
    item = torch.tensor([n for n, layout in enumerate(layouts) for _ in range(layout.num_units)])
    return MediaFeatures(torch.tensor(values).view(units, -1, WIDTH), item, layouts)


def see_through(projector):
    """A linear inner projector that changes nothing, and a newline that can be told from features."""
    with torch.no_grad():
        projector.inner.linear.weight.copy_(torch.eye(WIDTH))
        projector.inner.linear.bias.zero_()
        projector.newline.fill_(-1)
    return projector.eval()


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (100, 30), (30, 100), (64, 64), (1, 500), (500, 3), (333, 334)])
@pytest.mark.parametrize("grid", [(1, 2), (2, 1), (2, 2), (1, 3)])
def test_unpadding_keeps_every_place_that_shows_the_picture(size, grid):
    """The picture scaled into the map by exact fractions; only whole rows or columns outside of it may go, and all of them."""
    rows, columns = grid[0] * 24, grid[1] * 24
    above, left = unpadding(rows, columns, size)
    width, height = size
    scale = min(columns / width, rows / height)
    empty_rows, empty_columns = (rows - height * scale) / 2, (columns - width * scale) / 2
    assert above <= empty_rows + 0.5 and left <= empty_columns + 0.5
    assert above >= empty_rows - 1 and left >= empty_columns - 1
    assert above == 0 or left == 0


@pytest.mark.parametrize("thumbnail", ["first", "last", "none"])
@pytest.mark.parametrize(("grid", "size"), [((2, 3), (60, 40)), ((1, 2), (40, 40)), ((2, 2), (90, 20)), ((3, 1), (10, 31))])
def test_a_newline_ends_every_row_and_tiles_lie_side_by_side(thumbnail, grid, size):
    layout = tiled(*grid, picture_size=size, thumbnail=thumbnail)
    projector = see_through(Tiles.Config(inner=Linear.Config()).build(WIDTH, WIDTH))
    with torch.no_grad():
        tokens = projector(numbered(layout)).values.tolist()
    assert len(tokens) == projector.config.num_tokens(layout)
    rows, columns, above, left = projector.config.map_of(layout)
    first_tile, whole = (1, 0) if thumbnail == "first" else (0, layout.num_tiles)
    expected = [[whole, y, x, 0, 0] for y in range(SIDE) for x in range(SIDE)] if thumbnail != "none" else []
    for y in range(above, rows - above):
        for x in range(left, columns - left):
            tile = first_tile + (y // SIDE) * grid[1] + x // SIDE
            expected.append([tile, y % SIDE, x % SIDE, 0, 0])
        expected.append([-1] * WIDTH)
    assert tokens == expected
    assert tokens.count([-1] * WIDTH) == rows - 2 * above


def test_a_picture_that_was_not_cut_has_its_tokens_and_one_newline():
    projector = see_through(Tiles.Config(inner=Linear.Config()).build(WIDTH, WIDTH))
    with torch.no_grad():
        tokens = projector(numbered(MediaLayout(2, 3))).values.tolist()
    assert tokens == [[0, y, x, 0, 0] for y in range(2) for x in range(3)] + [[-1] * WIDTH]


@pytest.mark.parametrize(
    ("inner", "grid"),
    [
        (PixelShuffle.Config(), (2, 2)),
        (LDP.Config(), (2, 2)),
        (CAbstractor.Config(grid_side=4, side=3, depth=1), (3, 3)),
        (MLPDownsample.Config(ratio=3, order="rows"), (2, 2)),
    ],
    ids=lambda value: getattr(value, "part_name", ""),
)
def test_any_projector_that_keeps_places_can_stand_inside(inner, grid):
    config = Tiles.Config(inner=inner)
    layout = tiled(2, 3, (60, 40))
    assert config.map_of(layout)[:2] == (2 * grid[0], 3 * grid[1])
    projector = config.build(WIDTH, 8).eval()
    layouts = (layout, MediaLayout(SIDE, SIDE), tiled(1, 2, (10, 40), "last"))
    with torch.no_grad():
        tokens = projector(numbered(*layouts))
    assert tokens.item.bincount().tolist() == [config.num_tokens(each) for each in layouts]


@pytest.mark.parametrize(
    ("layout", "tokens", "grid"),
    [
        (MediaLayout(24, 24), 144, (12, 12)),
        (MediaLayout(24, 24), 256, (16, 16)),
        (MediaLayout(27, 27), 196, (14, 14)),
        (MediaLayout(3, 5), 6, (2, 3)),
        (MediaLayout(12, 18), 54, (6, 9)),
    ],
)
def test_the_grid_of_a_units_tokens(layout, tokens, grid):
    assert token_grid(layout, tokens, "Tiles") == grid


def test_tokens_without_places_have_no_grid():
    with pytest.raises(
        ConfigError, match="7 tokens of a unit with 4x4 features have no grid; Tiles needs a projector that keeps"
    ):
        token_grid(MediaLayout(4, 4), 7, "Tiles")


def test_what_tiles_cannot_merge_is_refused():
    config = Tiles.Config()
    with pytest.raises(ConfigError, match='MLPDownsample writes columns; set order="rows"'):
        Tiles.Config(inner=MLPDownsample.Config())
    with pytest.raises(ConfigError, match="needs the picture's size in the layout"):
        config.num_tokens(tiled(2, 2, picture_size=None))
    with pytest.raises(ConfigError, match="the tiles of one picture, got 3 frames"):
        config.num_tokens(MediaLayout(4, 4, frames=3))
    with pytest.raises(ConfigError, match="leave the encoder's class token out"):
        config.num_tokens(MediaLayout(1, 577, tile_rows=2, tile_columns=2, picture_size=(9, 9)))
    with pytest.raises(ConfigError, match="GlobalLocalTiles with ratio 2 needs a grid that it divides, got 27x27"):
        GlobalLocalTiles.Config().num_tokens(MediaLayout(27, 27))
    with pytest.raises(ConfigError, match="got 2 frames"):
        GlobalLocalTiles.Config().num_tokens(MediaLayout(4, 4, frames=2))


def test_stitched_tiles_show_the_picture():
    picture = torch.arange(6 * 6.0).view(6, 6, 1)
    tiles = torch.stack([picture[y : y + 2, x : x + 3].flatten(0, 1) for y in (0, 2, 4) for x in (0, 3)])
    assert torch.equal(stitch(tiles, 3, (2, 3)), picture)


def test_every_unit_as_an_item_keeps_what_was_said_of_its_picture():
    features = numbered(tiled(1, 2), MediaLayout(SIDE, SIDE))
    features = dataclasses.replace(features, instruction=torch.tensor([[7, 8], [9, -1]]), item_place=torch.tensor([0, 1]))
    alone = units_as_items(features)
    assert alone.layout == (MediaLayout(SIDE, SIDE),) * 4 and alone.unit_item.tolist() == [0, 1, 2, 3]
    assert alone.instruction.tolist() == [[7, 8]] * 3 + [[9, -1]] and alone.item_place.tolist() == [0, 0, 0, 1]
    assert alone.values is features.values


def test_newline_and_separator_of_global_local_tiles_begin_at_zero_and_learn():
    projector = GlobalLocalTiles.Config().build(WIDTH, 8)
    assert (projector.newline == 0).all() and (projector.separator == 0).all()
    projector(numbered(tiled(1, 2))).values.square().sum().backward()
    assert projector.newline.grad.abs().sum() > 0 and projector.separator.grad.abs().sum() > 0


def test_where_the_thumbnail_stands_among_the_units_does_not_matter():
    torch.manual_seed(0)
    projector = GlobalLocalTiles.Config().build(WIDTH, 8).eval()
    values = torch.randn(3, 16, WIDTH)
    item = torch.zeros(3, dtype=torch.long)
    with torch.no_grad():
        first = projector(MediaFeatures(values, item, (tiled(1, 2),))).values
        last = projector(MediaFeatures(values[[1, 2, 0]], item, (tiled(1, 2, thumbnail="last"),))).values
    assert torch.equal(first, last)
