"""The position-aware resampler of Qwen-VL."""

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
from weft.layers.resampler import Resampler


def sine_cosine_table(side: int, width: int) -> Tensor:
    """Fixed positions of a square grid, row by row: the first half of the channels says the column, the second the row.

    Each half holds the sines and then the cosines of the place times 10000^(-k / (width / 4)).

    Shapes: [side * side, width] float32. Source: the table of MAE, arXiv:2111.06377.
    Raises: ConfigError for a width that 4 does not divide.
    """
    if width % 4:
        raise ConfigError(f"a table of sines and cosines over two axes needs a width that 4 divides, got {width}")
    frequency = 10_000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency
    line = torch.cat((angle.sin(), angle.cos()), 1)  # [side, width / 2], one axis
    return torch.cat((line.repeat(side, 1), line.repeat_interleave(side, 0)), 1).float()


class QwenResampler(InputProjector):
    """A square grid of learned queries reads the features of a unit once; both sides know their place in the picture.

    The table of places is fixed: a buffer, no parameter. For another grid of features it is resized bicubically. The norm and
    the square matrix behind the attention belong to the published image encoder's end.

    Shapes: features (N, H * W, C) -> tokens (N * grid**2, D). Source: Qwen-VL, arXiv:2308.12966.
    """

    position_table: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(InputProjector.Config):
        """`grid` is the side of the square of queries; a head has `head_width` of the language model's channels."""

        grid: int = 16
        head_width: int = 128
        norm_eps: float = 1e-6

        def build(self, input_width: int, output_width: int) -> QwenResampler:
            return QwenResampler(self, input_width, output_width)

        def num_tokens(self, layout: MediaLayout) -> int:
            return layout.num_units * self.grid**2

        @property
        def keeps_places(self) -> bool:
            return False

        @classmethod
        def tiny(cls) -> Self:
            return cls(grid=2, head_width=8)

    def __init__(self, config: Config, input_width: int, output_width: int) -> None:
        super().__init__()
        self.config = config
        c, width = config, output_width
        self.resampler = Resampler(c.grid**2, input_width, width, c.head_width, c.norm_eps)
        self.register_buffer("position_table", sine_cosine_table(c.grid, width))
        self.final_norm = nn.LayerNorm(width, eps=c.norm_eps)
        self.output = nn.Linear(width, width, bias=False)
        nn.init.normal_(self.output.weight, std=width**-0.5)

    def forward(self, features: MediaFeatures) -> MediaTokens:
        positions = self.positions(features)
        tokens = self.resampler(features.values, features.valid, self.position_table, positions)
        return MediaTokens.from_units(self.output(self.final_norm(tokens)), features)

    def positions(self, features: MediaFeatures) -> Tensor:
        """The places of every unit's features: [1 or N, H * W, D]."""
        grids = {(layout.height, layout.width) for layout in features.layout}
        tables = {(height, width): self.resized(height, width) for height, width in grids}
        if len(grids) == 1:
            return tables[grids.pop()][None]
        return torch.stack([tables[layout.height, layout.width] for layout in features.layout])[features.unit_item]

    def resized(self, height: int, width: int) -> Tensor:
        """The table for a grid of features: [height * width, D]."""
        side = self.config.grid
        if (height, width) == (side, side):
            return self.position_table
        square = self.position_table.float().T.unflatten(1, (side, side))[None]
        table = F.interpolate(square, (height, width), mode="bicubic", align_corners=False)
        return table[0].flatten(1).T.to(self.position_table.dtype)
