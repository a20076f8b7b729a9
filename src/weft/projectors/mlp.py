"""The MLP projector of LLaVA-1.5."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import nn

from weft.core.interfaces import InputProjector
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures, MediaTokens


class MLP(InputProjector):
    """Linear layers with GELU between them: every feature becomes one token.

    Shapes: features (N, L, C) -> tokens (N * L, D). Source: LLaVA-1.5, arXiv:2310.03744 (`mlp2x_gelu` is depth 2).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(InputProjector.Config):
        depth: int = 2

        def build(self, input_width: int, output_width: int) -> MLP:
            return MLP(self, input_width, output_width)

        def num_tokens(self, layout: MediaLayout) -> int:
            return layout.positions

    def __init__(self, config: Config, input_width: int, output_width: int) -> None:
        super().__init__()
        self.config = config
        widths = [input_width] + [output_width] * config.depth
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.activation = nn.GELU()

    def forward(self, features: MediaFeatures) -> MediaTokens:
        values = self.layers[0](features.values)
        for layer in self.layers[1:]:
            values = layer(self.activation(values))
        return MediaTokens.one_each(values, features)
