"""The merge of tiles of InternLM-XComposer2-4KHD."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.core.errors import ConfigError
from weft.core.interfaces import InputProjector
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures, MediaTokens
from weft.layers.feature_grid import merge_neighbours
from weft.layers.tile_map import split_units, stitch, with_row_ends


class GlobalLocalTiles(InputProjector):
    """The thumbnail's map, a separator, the map of all tiles; a newline ends each row of both, and an MLP maps the whole.

    Neighbours stand side by side on channels as in `PixelShuffle`; newline and separator are of that width and begin at zero.
    A picture without thumbnail has the separator and what follows it.

    Shapes: features (N, H * W, C) -> of each picture h * (w + 1) + 1 + h * tile_rows * (w * tile_columns + 1) tokens with h, w
    = H, W / ratio.
    Raises: ConfigError for frames and for a grid that the ratio does not divide.
    Source: InternLM-XComposer2-4KHD, arXiv:2404.06512.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(InputProjector.Config):
        ratio: int = 2

        def build(self, input_width: int, output_width: int) -> GlobalLocalTiles:
            return GlobalLocalTiles(self, input_width, output_width)

        def num_tokens(self, layout: MediaLayout) -> int:
            if layout.frames > 1:
                raise ConfigError(f"GlobalLocalTiles merges the tiles of one picture, got {layout.frames} frames")
            rows, columns = self.token_grid(layout)
            thumbnail = 0 if layout.thumbnail == "none" else rows * (columns + 1)
            return thumbnail + 1 + layout.tile_rows * rows * (layout.tile_columns * columns + 1)

        def token_grid(self, layout: MediaLayout) -> tuple[int, int]:
            """Rows and columns of the tokens of one unit."""
            if layout.height % self.ratio or layout.width % self.ratio:
                raise ConfigError(
                    f"GlobalLocalTiles with ratio {self.ratio} needs a grid that it divides, got {layout.height}x{layout.width}"
                )
            return layout.height // self.ratio, layout.width // self.ratio

    def __init__(self, config: Config, input_width: int, output_width: int) -> None:
        super().__init__()
        self.config = config
        merged = input_width * config.ratio**2
        self.newline = nn.Parameter(torch.zeros(merged))
        self.separator = nn.Parameter(torch.zeros(merged))
        self.up = nn.Linear(merged, output_width)
        self.down = nn.Linear(output_width, output_width)

    def forward(self, features: MediaFeatures) -> MediaTokens:
        for layout in set(features.layout):
            self.config.num_tokens(layout)
        units = features.values.split([layout.num_units for layout in features.layout])
        merged = [self.merge(values, layout) for values, layout in zip(units, features.layout, strict=True)]
        counts = torch.tensor([len(tokens) for tokens in merged], device=features.unit_item.device)
        items = torch.arange(len(merged), device=features.unit_item.device)
        return MediaTokens(self.down(F.gelu(self.up(torch.cat(merged)))), items.repeat_interleave(counts))

    def merge(self, values: Tensor, layout: MediaLayout) -> Tensor:
        """The features [num_units, H * W, C] of one picture as vectors [tokens, C * ratio**2]."""
        grid = self.config.token_grid(layout)
        thumbnail, tiles = split_units(merge_neighbours(values, layout.height, layout.width, self.config.ratio), layout)
        maps = [stitch(thumbnail, 1, grid)] if len(thumbnail) else []
        maps.append(stitch(tiles, layout.tile_rows, grid))
        lines = [with_row_ends(each, self.newline) for each in maps]
        return torch.cat((*lines[:-1], self.separator.to(values.dtype)[None], lines[-1]))
