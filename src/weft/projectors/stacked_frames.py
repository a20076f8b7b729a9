"""Neighbouring frames of sound side by side, the projector of SLAM-ASR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch.nn.functional as F
from torch import Tensor, nn

from weft.core.interfaces import InputProjector
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures, MediaTokens


class StackedFrames(InputProjector):
    """Every `ratio` features in a row on channels, then two linear layers with ReLU between: fifty frames become ten tokens.

    The published code leaves out what does not fill a last token; here zeros fill it, so that the end of a clip is heard.
    Features that are a grid are taken row by row.

    Shapes: features (N, L, C) -> tokens (N * ceil(L / ratio), D).
    Source: SLAM-ASR, arXiv:2402.08846 (ratio 5, 2,048 wide).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(InputProjector.Config):
        ratio: int = 5
        width: int = 2048

        def build(self, input_width: int, output_width: int) -> StackedFrames:
            return StackedFrames(self, input_width, output_width)

        def num_tokens(self, layout: MediaLayout) -> int:
            return layout.num_units * -(-layout.height * layout.width // self.ratio)

        @classmethod
        def tiny(cls) -> Self:
            return cls(ratio=3, width=32)

    def __init__(self, config: Config, input_width: int, output_width: int) -> None:
        super().__init__()
        self.config = config
        self.up = nn.Linear(config.ratio * input_width, config.width)
        self.down = nn.Linear(config.width, output_width)

    def forward(self, features: MediaFeatures) -> MediaTokens:
        return features.on_grids(self.stack)

    def stack(self, values: Tensor, height: int, width: int) -> Tensor:
        """Shapes: [N, L, C] with at least height * width features -> [N, ceil(height * width / ratio), D]."""
        ratio, length = self.config.ratio, height * width
        filled = F.pad(values[:, :length], (0, 0, 0, -length % ratio))
        return self.down(F.relu(self.up(filled.unflatten(1, (-1, ratio)).flatten(2))))
