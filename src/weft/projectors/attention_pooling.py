"""Attention pooling, the second connector of MM1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from weft.core.interfaces import InputProjector
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures, MediaTokens
from weft.layers.resampler import Resampler


class AttentionPooling(InputProjector):
    """Learned queries read the features of a unit once, without positions: a unit becomes `num_queries` tokens.

    The paper gives no code and no layer list; this is one resampling layer at the language model's width.

    Shapes: features (N, L, C) -> tokens (N * num_queries, D). Source: MM1, arXiv:2403.09611, with 64 and 144 queries.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(InputProjector.Config):
        num_queries: int = 144
        head_width: int = 128
        norm_eps: float = 1e-6

        def build(self, input_width: int, output_width: int) -> AttentionPooling:
            return AttentionPooling(self, input_width, output_width)

        def num_tokens(self, layout: MediaLayout) -> int:
            return layout.num_units * self.num_queries

        @property
        def keeps_places(self) -> bool:
            return False

        @classmethod
        def tiny(cls) -> Self:
            return cls(num_queries=5, head_width=8)

    def __init__(self, config: Config, input_width: int, output_width: int) -> None:
        super().__init__()
        self.config = config
        self.resampler = Resampler(config.num_queries, input_width, output_width, config.head_width, config.norm_eps)

    def forward(self, features: MediaFeatures) -> MediaTokens:
        return MediaTokens.from_units(self.resampler(features.values, features.valid), features)
