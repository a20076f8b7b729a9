"""The pixel-shuffle projector of InternVL 1.5."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from weft.core.errors import ConfigError
from weft.core.interfaces import InputProjector
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures, MediaTokens
from weft.layers.feature_grid import by_columns, merge_neighbours


class PixelShuffle(InputProjector):
    """Trade resolution for channels, then normalise and map to the language width.

    Shapes: features (N, H * W, C) -> tokens (N * H * W / ratio**2, D); ratio must divide H and W.
    Source: InternVL 1.5, arXiv:2404.16821. Its second version writes the tokens row by row, its first (`order="columns"`)
    column by column; channels are in the same order in both.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(InputProjector.Config):
        ratio: int = 2
        order: Literal["rows", "columns"] = "rows"

        def build(self, input_width: int, output_width: int) -> PixelShuffle:
            return PixelShuffle(self, input_width, output_width)

        def num_tokens(self, layout: MediaLayout) -> int:
            if layout.height % self.ratio or layout.width % self.ratio:
                raise ConfigError(
                    f"PixelShuffle with ratio {self.ratio} needs a grid that it divides, got {layout.height}x{layout.width}; "
                    "MLPDownsample pads such a grid"
                )
            return layout.positions // self.ratio**2

    def __init__(self, config: Config, input_width: int, output_width: int) -> None:
        super().__init__()
        self.config = config
        merged = input_width * config.ratio**2
        self.norm = nn.LayerNorm(merged)
        self.up = nn.Linear(merged, output_width)
        self.activation = nn.GELU()
        self.down = nn.Linear(output_width, output_width)

    def forward(self, features: MediaFeatures) -> MediaTokens:
        for layout in set(features.layout):
            self.config.num_tokens(layout)
        merged = features.on_grids(self.merge)
        return MediaTokens(self.down(self.activation(self.up(self.norm(merged.values)))), merged.item)

    def merge(self, values: Tensor, height: int, width: int) -> Tensor:
        """Every unit's neighbours on channels: [N, height * width, C] -> [N, K, C * ratio**2]."""
        ratio = self.config.ratio
        merged = merge_neighbours(values, height, width, ratio)
        return merged if self.config.order == "rows" else by_columns(merged, height // ratio, width // ratio)
