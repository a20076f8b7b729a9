"""The deformable abstractor of Honeybee."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.core.errors import ConfigError
from weft.core.interfaces import InputProjector
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures, MediaTokens
from weft.layers.deformable_attention import DeformableBlock
from weft.layers.feature_grid import to_channels_first, to_channels_last


class DAbstractor(InputProjector):
    """Learned queries read the feature map near learned points, which begin on an even grid.

    The queries' positions are the map itself, averaged down to `side` x `side`.

    Shapes: features (N, grid_side**2, C) -> tokens (N * side**2, D).
    Raises: ConfigError for another grid than the one that the positions were made for.
    Source: Honeybee, arXiv:2312.06742 (`pooled_v_target: query`); the published code runs in float32 and on CUDA only.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(InputProjector.Config):
        grid_side: int = 24
        side: int = 12
        num_layers: int = 6
        num_heads: int = 8
        num_points: int = 4
        feed_forward_width: int = 1024
        dropout: float = 0.1

        def build(self, input_width: int, output_width: int) -> DAbstractor:
            return DAbstractor(self, input_width, output_width)

        def num_tokens(self, layout: MediaLayout) -> int:
            if (layout.height, layout.width) != (self.grid_side, self.grid_side):
                raise ConfigError(
                    f"DAbstractor has learned positions for a grid of {self.grid_side}x{self.grid_side}, got "
                    f"{layout.height}x{layout.width}; set grid_side to the grid of the encoder, its class token left out"
                )
            return layout.num_units * self.side**2

        @classmethod
        def tiny(cls) -> Self:
            return cls(grid_side=4, side=2, num_layers=2, num_heads=2, num_points=2, feed_forward_width=32)

    def __init__(self, config: Config, input_width: int, output_width: int) -> None:
        super().__init__()
        self.config = config
        c = config
        self.position = nn.Parameter(torch.empty(c.grid_side**2, input_width))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.queries = nn.Parameter(torch.randn(c.side**2, input_width))
        self.reference_points = nn.Parameter(even_points(c.grid_side, c.side))
        self.blocks = nn.ModuleList(
            DeformableBlock(input_width, c.num_heads, c.num_points, c.feed_forward_width, c.dropout)
            for _ in range(c.num_layers)
        )
        same = input_width == output_width  # the published code has no matrix then
        self.output: nn.Module = nn.Identity() if same else nn.Linear(input_width, output_width)

    def forward(self, features: MediaFeatures) -> MediaTokens:
        for layout in set(features.layout):
            self.config.num_tokens(layout)
        return features.on_grids(self.abstract)

    def abstract(self, values: Tensor, height: int, width: int) -> Tensor:
        """Shapes: [N, height * width, C] -> [N, side**2, D]."""
        grid = to_channels_first(values + self.position, height, width)
        position = to_channels_last(F.adaptive_avg_pool2d(grid, self.config.side))
        queries = self.queries.expand_as(position)
        points = self.reference_points.expand(len(values), -1, -1)
        for block in self.blocks:
            queries = block(queries, position, points, grid)
        return self.output(queries)


def even_points(grid_side: int, side: int) -> Tensor:
    """`side` x `side` points from the middle of the first feature to that of the last, row by row: [side**2, 2] as (x, y)."""
    step = (grid_side - 1) / max(side - 1, 1)
    line = (torch.arange(side) * step + 0.5) / grid_side  # `transformers` may leave `torch.linspace` deaf to `torch.device`
    return torch.stack((line.repeat(side), line.repeat_interleave(side)), -1)
