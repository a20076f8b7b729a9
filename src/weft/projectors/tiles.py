"""The merge of tiles of LLaVA-NeXT, around any projector that keeps places."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn

from weft.core.errors import ConfigError
from weft.core.interfaces import InputProjector
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures, MediaTokens
from weft.layers.feature_grid import check_grid
from weft.layers.tile_map import split_units, stitch, token_grid, units_as_items, unpadding, with_row_ends
from weft.projectors.mlp import MLP


class Tiles(InputProjector):
    """Every unit through the inner projector; the thumbnail's tokens, then those of all tiles as one map.

    What shows padding only is cut off the map, and a learned newline ends each of its rows. A picture that was not cut has its
    tokens and one newline. The inner projector writes a unit's tokens row by row.

    Shapes: features (N, H * W, C) -> of each picture K of the thumbnail and rows * (columns + 1) of the map.
    Raises: ConfigError for frames, for features that are no grid, and for tiles of a picture of unknown size.
    Source: LLaVA-NeXT (`spatial_unpad`), after LLaVA-1.5-HD, arXiv:2310.03744.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(InputProjector.Config):
        inner: InputProjector.Config = field(default_factory=MLP.Config)

        def __post_init__(self) -> None:
            if getattr(self.inner, "order", "rows") != "rows":
                raise ConfigError(f'Tiles lays tokens out row by row, {self.inner.part_name} writes columns; set order="rows"')

        def build(self, input_width: int, output_width: int) -> Tiles:
            return Tiles(self, input_width, output_width)

        def num_tokens(self, layout: MediaLayout) -> int:
            if layout.frames > 1:
                raise ConfigError(f"Tiles merges the tiles of one picture, got {layout.frames} frames")
            inside = self.inner.num_tokens(MediaLayout(layout.height, layout.width))
            if layout.num_tiles == 1 and layout.thumbnail == "none":
                return inside + 1
            rows, columns, above, left = self.map_of(layout)
            thumbnail = inside if layout.thumbnail != "none" else 0
            return thumbnail + (rows - 2 * above) * (columns - 2 * left + 1)

        def map_of(self, layout: MediaLayout) -> tuple[int, int, int, int]:
            """Rows and columns of the map of all tiles, and how many of them are padding at each end."""
            check_grid(layout, "Tiles")
            if layout.picture_size is None:
                raise ConfigError(
                    "Tiles cuts padding off and needs the picture's size in the layout, as AnyResolution gives it"
                )
            unit = MediaLayout(layout.height, layout.width)
            grid = token_grid(unit, self.inner.num_tokens(unit), "Tiles")
            rows, columns = layout.tile_rows * grid[0], layout.tile_columns * grid[1]
            return rows, columns, *unpadding(rows, columns, layout.picture_size)

        @classmethod
        def tiny(cls) -> Self:
            return cls(inner=MLP.Config.tiny())

    def __init__(self, config: Config, input_width: int, output_width: int) -> None:
        super().__init__()
        self.config = config
        self.inner = config.inner.build(input_width, output_width)
        self.newline = nn.Parameter(torch.randn(output_width) * output_width**-0.5)

    def forward(self, features: MediaFeatures) -> MediaTokens:
        for layout in set(features.layout):
            self.config.num_tokens(layout)
        units = self.inner(units_as_items(features))
        first, merged = 0, []
        for layout in features.layout:
            count = layout.num_units * self.config.inner.num_tokens(MediaLayout(layout.height, layout.width))
            merged.append(self.merge(units.values[first : first + count], layout))
            first += count
        counts = torch.tensor([len(tokens) for tokens in merged], device=features.unit_item.device)
        items = torch.arange(len(merged), device=features.unit_item.device)
        return MediaTokens(torch.cat(merged), items.repeat_interleave(counts))

    def merge(self, tokens: Tensor, layout: MediaLayout) -> Tensor:
        """The tokens of one picture's units, in the order of the units, become the picture's."""
        if layout.num_units == 1:
            return torch.cat((tokens, self.newline.to(tokens.dtype)[None]))
        rows, columns, above, left = self.config.map_of(layout)
        units = tokens.unflatten(0, (layout.num_units, -1))
        thumbnail, tiles = split_units(units, layout)
        grid = stitch(tiles, layout.tile_rows, (rows // layout.tile_rows, columns // layout.tile_columns))
        lines = with_row_ends(grid[above : rows - above, left : columns - left], self.newline)
        return torch.cat((thumbnail.flatten(0, 1), lines))
