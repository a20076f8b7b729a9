"""The gated projector of CogVLM."""

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
from weft.layers.feed_forward import GatedFeedForward


class GLU(InputProjector):
    """A linear layer, norm and GELU, then a gated feed-forward; a learned vector opens each medium and another closes it.

    Shapes: features (N, L, C) -> tokens (N * (L + 2), D). One unit a medium.
    Source: CogVLM, arXiv:2311.03079, and its published code.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(InputProjector.Config):
        feed_forward_width: int = 11_008

        def build(self, input_width: int, output_width: int) -> GLU:
            return GLU(self, input_width, output_width)

        def num_tokens(self, layout: MediaLayout) -> int:
            if layout.num_units != 1:
                raise ConfigError(f"GLU opens and closes a medium of one unit, got {layout.num_units}")
            return layout.positions + 2

        @classmethod
        def tiny(cls) -> Self:
            return cls(feed_forward_width=56)

    def __init__(self, config: Config, input_width: int, output_width: int) -> None:
        super().__init__()
        self.config = config
        self.input = nn.Linear(input_width, output_width, bias=False)
        self.norm = nn.LayerNorm(output_width)
        self.feed_forward = GatedFeedForward(output_width, config.feed_forward_width)
        self.opening = nn.Parameter(torch.zeros(output_width))
        self.closing = nn.Parameter(torch.zeros(output_width))

    def forward(self, features: MediaFeatures) -> MediaTokens:
        for layout in set(features.layout):
            self.config.num_tokens(layout)
        return features.on_grids(self.enclosed)

    def enclosed(self, values: Tensor, height: int, width: int) -> Tensor:
        """The tokens of units of one grid: [n, L, C] -> [n, height * width + 2, D]."""
        tokens = self.feed_forward(F.gelu(self.norm(self.input(values[:, : height * width]))))
        ends = (end.to(tokens.dtype).expand(len(tokens), 1, -1) for end in (self.opening, self.closing))
        opening, closing = ends
        return torch.cat((opening, tokens, closing), 1)
