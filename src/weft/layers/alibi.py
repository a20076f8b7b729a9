"""Attention with linear biases: the further a key, the lower its score."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


class Alibi(nn.Module):
    """A score bias that falls with the distance of two positions, at a slope of its own for each head.

    The slopes are 2 to the power of -max_exponent * i / H for i = 1 .. H. A number of heads that is no power of two takes those
    of the next one, every second first. Keys at later positions, which a rule may show too, count by their distance as well.

    Shapes: query positions [B, Tq], key positions [B, Tk] -> [B, H, Tq, Tk] float32.
    Source: ALiBi, arXiv:2108.12409; the slopes of other numbers of heads as MPT has them.
    """

    slopes: Tensor

    def __init__(self, num_heads: int, max_exponent: int = 8) -> None:
        super().__init__()
        self.num_heads, self.max_exponent = num_heads, max_exponent
        self.register_buffer("slopes", self._slopes(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Slopes follow the model to its device and stay in float32: in bfloat16 far distances would be wrong by tokens."""
        super()._apply(fn, recurse)
        if self.slopes.dtype != torch.float32:
            self.slopes = self._slopes().to(self.slopes.device)
        return self

    def _slopes(self) -> Tensor:
        power = 2 ** math.ceil(math.log2(self.num_heads))
        slopes = 2.0 ** (-self.max_exponent * torch.arange(1, power + 1, dtype=torch.float32) / power)
        return slopes if power == self.num_heads else torch.cat((slopes[1::2], slopes[::2]))[: self.num_heads]

    def forward(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        distance = (query_positions[:, None, :, None] - key_positions[:, None, None, :]).abs()
        return -self.slopes[:, None, None] * distance
