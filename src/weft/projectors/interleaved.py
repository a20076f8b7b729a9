"""The interleaving projector of Mixture of Features."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import torch

from weft.core.errors import ConfigError
from weft.core.interfaces import InputProjector
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures, MediaTokens
from weft.projectors.mlp import MLP


class Interleaved(InputProjector):
    """Two encoders' features, side by side on channels, each through a projector of its own; their tokens take turns.

    Tokens 0, 2, 4, ... are the first encoder's and 1, 3, 5, ... the second's, so that both tokens of a place stand together.

    Shapes: features (N, L, C + E) -> twice the inner projector's tokens, (2 P, D).
    Source: Mixture of Features, arXiv:2401.06209.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(InputProjector.Config):
        """`inner` is built twice. `first_width` says how many channels are the first encoder's; None: half of them."""

        inner: InputProjector.Config = field(default_factory=MLP.Config)
        first_width: int | None = None

        def build(self, input_width: int, output_width: int) -> Interleaved:
            return Interleaved(self, input_width, output_width)

        def num_tokens(self, layout: MediaLayout) -> int:
            return 2 * self.inner.num_tokens(layout)

        def widths(self, input_width: int) -> tuple[int, int]:
            """The channels of the first and of the second encoder.

            Raises: ConfigError where they do not make up the features' width.
            """
            if self.first_width is None and input_width % 2:
                raise ConfigError(f"Interleaved cannot halve features of width {input_width}; set first_width")
            first = input_width // 2 if self.first_width is None else self.first_width
            if not 0 < first < input_width:
                raise ConfigError(
                    f"Interleaved takes its first {first} channels from the first encoder, the features have {input_width}; "
                    "set first_width to the first encoder's width, and the encoder to a Mixture without alpha"
                )
            return first, input_width - first

        @classmethod
        def tiny(cls) -> Self:
            return cls(inner=MLP.Config.tiny())

    def __init__(self, config: Config, input_width: int, output_width: int) -> None:
        super().__init__()
        self.config = config
        self.widths = config.widths(input_width)
        self.first = config.inner.build(self.widths[0], output_width)
        self.second = config.inner.build(self.widths[1], output_width)

    def forward(self, features: MediaFeatures) -> MediaTokens:
        first, second = features.values.split(self.widths, -1)
        one = self.first(replace(features, values=first))
        other = self.second(replace(features, values=second))
        # the same config on the same layouts: as many tokens of every item, in the same order
        return MediaTokens(torch.stack((one.values, other.values), 1).flatten(0, 1), one.item.repeat_interleave(2))
