"""The tokens of a picture's tiles as one map."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from weft.core.errors import ConfigError
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures


def units_as_items(features: MediaFeatures) -> MediaFeatures:
    """The same features, every unit an item of its own."""
    units = tuple(MediaLayout(each.height, each.width) for each in features.layout for _ in range(each.num_units))

    def of_units(of_items: Tensor | None) -> Tensor | None:
        return None if of_items is None else of_items[features.unit_item]

    return replace(
        features,
        unit_item=torch.arange(len(units), device=features.unit_item.device),
        layout=units,
        instruction=of_units(features.instruction),
        item_place=of_units(features.item_place),
    )


def split_units(units: Tensor, layout: MediaLayout) -> tuple[Tensor, Tensor]:
    """The thumbnail and the tiles of one picture's units. Shapes: [num_units, ...] -> [0 or 1, ...] and [num_tiles, ...]."""
    if layout.thumbnail == "last":
        return units[layout.num_tiles :], units[: layout.num_tiles]
    first = int(layout.thumbnail == "first")
    return units[:first], units[first:]


def token_grid(layout: MediaLayout, num_tokens: int, part: str) -> tuple[int, int]:
    """Rows and columns of the tokens that one unit became: a square of a square grid, or the grid made coarser.

    Raises: ConfigError for tokens that stand for no places, such as a resampler's queries on an oblong grid.
    """
    side = math.isqrt(num_tokens)
    if layout.height == layout.width and side * side == num_tokens:
        return side, side
    for factor in range(1, min(layout.height, layout.width) + 1):
        rows, columns = -(-layout.height // factor), -(-layout.width // factor)
        if rows * columns == num_tokens:
            return rows, columns
    raise ConfigError(
        f"{num_tokens} tokens of a unit with {layout.height}x{layout.width} features have no grid; {part} needs a projector "
        "that keeps places"
    )


def stitch(tiles: Tensor, tile_rows: int, grid: tuple[int, int]) -> Tensor:
    """Tiles row by row, each of tokens row by row, laid side by side.

    Shapes: [tile_rows * tile_columns, rows * columns, D] -> [tile_rows * rows, tile_columns * columns, D].
    """
    rows, columns = grid
    parts = tiles.view(tile_rows, -1, rows, columns, tiles.shape[-1])
    return parts.transpose(1, 2).reshape(tile_rows * rows, -1, tiles.shape[-1])


def with_row_ends(grid: Tensor, newline: Tensor) -> Tensor:
    """The map row by row, a newline behind each. Shapes: [H, W, D], [D] -> [H * (W + 1), D]."""
    ends = newline.to(grid.dtype).expand(len(grid), 1, -1)
    return torch.cat((grid, ends), 1).flatten(0, 1)


def unpadding(rows: int, columns: int, picture_size: tuple[int, int]) -> tuple[int, int]:
    """How many rows above and below, and columns left and right, of a map show nothing but padding.

    The picture (width, height) was scaled to fit and centred. A rest of half a token stays in the map.
    """
    width, height = picture_size
    if width * rows > columns * height:
        return (rows - height * columns // width) // 2, 0
    return 0, (columns - width * rows // height) // 2
