"""Rotary positions that turn only a part of each head."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from weft.layers.rotary import Rotary


class PartialRotary(nn.Module):
    """Cosine and sine tables that turn `rotated_width` channels of a head, in the half-split layout that `rotate` takes.

    Half of the turned channels stand at the start of each half of the head. A layout that keeps them together at the head's
    start becomes this one when its query and key rows are put in another order, which changes no product of a query and a key.

    Shapes: positions [B, T] -> (cos, sin), each [B, 1, T, head_width].
    Source: GPT-NeoX-20B, arXiv:2204.06745, which turns a quarter of the channels.
    """

    def __init__(self, head_width: int, rotated_width: int, theta: float) -> None:
        super().__init__()
        self.still = (head_width - rotated_width) // 2
        self.turning = Rotary(rotated_width, theta)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.turning(positions)
        return self._widened(cos, 1.0), self._widened(sin, 0.0)

    def _widened(self, table: Tensor, value: float) -> Tensor:
        """Each half of a table followed by what turns nothing: [.., r] -> [.., head_width]."""
        return F.pad(table.unflatten(-1, (2, -1)), (0, self.still), value=value).flatten(-2)
