"""The second lightweight downsample projector of MobileVLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch.nn.functional as F
from torch import Tensor, nn

from weft.core.interfaces import InputProjector
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures, MediaTokens
from weft.layers.feature_grid import check_grid, check_side, to_channels_first, to_channels_last


class LDPv2(InputProjector):
    """An MLP, the grid averaged down to `side` x `side`, and a depthwise convolution that is added to it for positions.

    Shapes: features (N, H * W, C) -> tokens (N * side**2, D); H and W at least `side`.
    Raises: ConfigError for features that are no grid, or a smaller one.
    Source: MobileVLM V2, arXiv:2402.03766; the convolution is the positional encoding generator of arXiv:2102.10882.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(InputProjector.Config):
        side: int = 12

        def build(self, input_width: int, output_width: int) -> LDPv2:
            return LDPv2(self, input_width, output_width)

        def num_tokens(self, layout: MediaLayout) -> int:
            check_grid(layout, "LDPv2")
            check_side(layout, self.side, "LDPv2")
            return layout.num_units * self.side**2

        @classmethod
        def tiny(cls) -> Self:
            return cls(side=2)

    def __init__(self, config: Config, input_width: int, output_width: int) -> None:
        super().__init__()
        self.config = config
        self.up = nn.Linear(input_width, output_width)
        self.down = nn.Linear(output_width, output_width)
        self.position = nn.Conv2d(output_width, output_width, 3, padding=1, groups=output_width)

    def forward(self, features: MediaFeatures) -> MediaTokens:
        for layout in set(features.layout):
            self.config.num_tokens(layout)
        return features.on_grids(self.downsample)

    def downsample(self, values: Tensor, height: int, width: int) -> Tensor:
        """Shapes: [N, height * width, C] -> [N, side**2, D]."""
        hidden = to_channels_first(self.down(F.gelu(self.up(values))), height, width)
        pooled = F.adaptive_avg_pool2d(hidden, self.config.side)
        return to_channels_last(pooled + self.position(pooled))
