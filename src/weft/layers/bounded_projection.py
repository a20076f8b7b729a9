"""A linear layer whose output is kept within bounds."""

from __future__ import annotations

from torch import Tensor, nn

from weft.layers.linear import Linear


class BoundedProjection(Linear):
    """A linear layer without bias whose output is clipped to [-limit, limit], then normalised over its whole width.

    Both keep the scores of attention from growing in training; either may be left out.

    Shapes: [.., D] -> [.., E]. Source: the queries, keys and values of MPT; norms of queries and keys, arXiv:2302.05442.
    """

    def __init__(self, width: int, output_width: int, limit: float | None = None, norm: nn.Module | None = None) -> None:
        super().__init__(width, output_width, bias=False)
        self.limit = limit
        self.norm = norm or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        projected = super().forward(x)
        if self.limit is not None:
            projected = projected.clamp(-self.limit, self.limit)
        return self.norm(projected)
