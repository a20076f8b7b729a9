"""Average pooling, the first connector of MM1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch.nn.functional as F
from torch import Tensor, nn

from weft.core.interfaces import InputProjector
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures, MediaTokens
from weft.layers.feature_grid import check_side, to_channels_first, to_channels_last


class AveragePooling(InputProjector):
    """The grid of a unit averaged down to `side` x `side`, then one matrix with bias.

    Where `side` does not divide the grid, token i of a line averages the features from floor(i H / side) up to
    ceil((i + 1) H / side): neighbours then share a row, none is left out.

    Shapes: features (N, H * W, C) -> tokens (N * side**2, D); H and W at least `side`.
    Source: MM1, arXiv:2403.09611, with 64 and 144 tokens.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(InputProjector.Config):
        side: int = 12

        def build(self, input_width: int, output_width: int) -> AveragePooling:
            return AveragePooling(self, input_width, output_width)

        def num_tokens(self, layout: MediaLayout) -> int:
            check_side(layout, self.side, "AveragePooling")
            return layout.num_units * self.side**2

        @classmethod
        def tiny(cls) -> Self:
            return cls(side=2)

    def __init__(self, config: Config, input_width: int, output_width: int) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(input_width, output_width)

    def forward(self, features: MediaFeatures) -> MediaTokens:
        return MediaTokens.from_units(self.linear(self.pool(features)), features)

    def pool(self, features: MediaFeatures) -> Tensor:
        """The averages: [N, side**2, C]."""
        for layout in features.layout:
            self.config.num_tokens(layout)
        return features.on_grids(self._pool_grid).values.unflatten(0, (-1, self.config.side**2))

    def _pool_grid(self, values: Tensor, height: int, width: int) -> Tensor:
        return to_channels_last(F.adaptive_avg_pool2d(to_channels_first(values, height, width), self.config.side))
