"""Attention whose scores are not divided by the root of the head's width."""

from __future__ import annotations

import math

from torch import Tensor, nn


class UnscaledQuery(nn.Module):
    """Stands in the place of a query norm and takes back what every kernel divides scores by.

    With heads of 64, or any power of 4, both factors are exact powers of two and cost no digit.

    Shapes: [..., head_width] unchanged. Source: T5, arXiv:1910.10683, which leaves the scaling to its initialisation.
    """

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.factor = math.sqrt(head_width)

    def forward(self, query: Tensor) -> Tensor:
        return query * self.factor
