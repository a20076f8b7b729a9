"""The downsampling projector of VILA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from weft.core.interfaces import InputProjector
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures, MediaTokens
from weft.layers.feature_grid import by_columns, check_grid, merge_neighbours, pad_grid


class MLPDownsample(InputProjector):
    """Neighbours side by side on channels, with zeros below and to the right of a grid that does not divide, then an MLP.

    Shapes: features (N, H * W, C) -> tokens (N * ceil(H / ratio) * ceil(W / ratio), D).
    Raises: ConfigError for features that are no grid.
    Source: VILA, arXiv:2312.07533 (`mlp_downsample`): 27 x 27 features become 14 x 14 tokens. VILA-1.5 writes them column by
    column, NVILA (arXiv:2412.04468, `order="rows"`) row by row.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(InputProjector.Config):
        ratio: int = 2
        order: Literal["rows", "columns"] = "columns"

        def build(self, input_width: int, output_width: int) -> MLPDownsample:
            return MLPDownsample(self, input_width, output_width)

        def num_tokens(self, layout: MediaLayout) -> int:
            check_grid(layout, "MLPDownsample")
            return layout.num_units * -(-layout.height // self.ratio) * -(-layout.width // self.ratio)

    def __init__(self, config: Config, input_width: int, output_width: int) -> None:
        super().__init__()
        self.config = config
        merged = input_width * config.ratio**2
        self.norm = nn.LayerNorm(merged)
        self.up = nn.Linear(merged, output_width)
        self.down = nn.Linear(output_width, output_width)

    def forward(self, features: MediaFeatures) -> MediaTokens:
        for layout in set(features.layout):
            self.config.num_tokens(layout)
        return features.on_grids(self.downsample)

    def downsample(self, values: Tensor, height: int, width: int) -> Tensor:
        """Shapes: [N, height * width, C] -> [N, K, D]."""
        ratio = self.config.ratio
        values, height, width = pad_grid(values, height, width, ratio)
        merged = merge_neighbours(values, height, width, ratio)
        if self.config.order == "columns":
            merged = by_columns(merged, height // ratio, width // ratio)
        return self.down(F.gelu(self.up(self.norm(merged))))
