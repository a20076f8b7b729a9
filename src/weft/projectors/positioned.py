"""A learned position for every token that a projector emits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import nn

from weft.core.errors import ConfigError
from weft.core.interfaces import InputProjector
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures, MediaTokens
from weft.projectors.mlp import MLP


class Positioned(InputProjector):
    """Add a learned vector to each of another projector's tokens, by its place in the medium.

    A small language model learns where things are much sooner when the tokens say it themselves; the encoder's own positions
    are mixed with content by then.

    Shapes: features (N, L, C) -> the inner projector's tokens (P, D), at most `capacity` per medium.
    Source: learned positions as the vision transformer adds them, arXiv:2010.11929.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(InputProjector.Config):
        inner: InputProjector.Config = field(default_factory=MLP.Config)
        capacity: int = 64
        scale: float = 0.2

        def build(self, input_width: int, output_width: int) -> Positioned:
            return Positioned(self, input_width, output_width)

        def num_tokens(self, layout: MediaLayout) -> int:
            count = self.inner.num_tokens(layout)
            if count > self.capacity:
                raise ConfigError(
                    f"Positioned has {self.capacity} positions, a medium of {layout} needs {count}; raise capacity"
                )
            return count

        @property
        def keeps_places(self) -> bool:
            return self.inner.keeps_places

        @classmethod
        def tiny(cls) -> Self:
            return cls(inner=MLP.Config.tiny())

    def __init__(self, config: Config, input_width: int, output_width: int) -> None:
        super().__init__()
        self.config = config
        self.inner = config.inner.build(input_width, output_width)
        self.norm = nn.LayerNorm(output_width)
        nn.init.constant_(self.norm.weight, config.scale)
        self.position = nn.Parameter(torch.randn(config.capacity, output_width) * config.scale)

    def forward(self, features: MediaFeatures) -> MediaTokens:
        tokens = self.inner(features)
        counts = torch.bincount(tokens.item, minlength=len(features.layout))
        for layout in set(features.layout):
            self.config.num_tokens(layout)
        first = counts.cumsum(0) - counts
        place = torch.arange(len(tokens.values), device=tokens.item.device) - first[tokens.item]
        return MediaTokens(self.norm(tokens.values) + self.position[place], tokens.item)
