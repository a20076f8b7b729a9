"""Neighbouring features side by side through one matrix, the projector of MiniGPT-4 on LLaMA-2."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from weft.core.errors import ConfigError
from weft.core.interfaces import InputProjector
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures, MediaTokens


class AdjacentFeatures(InputProjector):
    """Every `ratio` features that follow each other row by row on channels, then one matrix with bias.

    Shapes: features (N, L, C) -> tokens (N * L / ratio, D).
    Raises: ConfigError for features that `ratio` does not divide.
    Source: MiniGPT-4 on LLaMA-2 and MiniGPT-v2, arXiv:2310.09478: 16 x 16 features of width 1408 become 64 tokens.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(InputProjector.Config):
        ratio: int = 4

        def build(self, input_width: int, output_width: int) -> AdjacentFeatures:
            return AdjacentFeatures(self, input_width, output_width)

        def num_tokens(self, layout: MediaLayout) -> int:
            length = layout.height * layout.width
            if length % self.ratio:
                raise ConfigError(
                    f"AdjacentFeatures joins {self.ratio} features each, {length} do not divide; choose a divisor"
                )
            return layout.num_units * length // self.ratio

    def __init__(self, config: Config, input_width: int, output_width: int) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.ratio * input_width, output_width)

    def forward(self, features: MediaFeatures) -> MediaTokens:
        for layout in set(features.layout):
            self.config.num_tokens(layout)
        return features.on_grids(self.join)

    def join(self, values: Tensor, height: int, width: int) -> Tensor:
        """Shapes: [N, L, C] with at least height * width features -> [N, height * width / ratio, D]."""
        joined: Tensor = self.linear(values[:, : height * width].unflatten(1, (-1, self.config.ratio)).flatten(2))
        return joined
