"""The linear projector of LLaVA."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from weft.core.interfaces import InputProjector
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures, MediaTokens


class Linear(InputProjector):
    """One matrix with bias: every feature becomes one token.

    Shapes: features (N, L, C) -> tokens (N * L, D). Source: LLaVA, arXiv:2304.08485.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(InputProjector.Config):
        def build(self, input_width: int, output_width: int) -> Linear:
            return Linear(self, input_width, output_width)

        def num_tokens(self, layout: MediaLayout) -> int:
            return layout.positions

    def __init__(self, config: Config, input_width: int, output_width: int) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(input_width, output_width)

    def forward(self, features: MediaFeatures) -> MediaTokens:
        return MediaTokens.one_each(self.linear(features.values), features)
