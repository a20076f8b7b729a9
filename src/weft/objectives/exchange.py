"""What ranks tell each other about their pairs: everything at once, or a neighbour's share after the other.

Every rank of a process group calls these together, in the same order.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def row_counts(rows: int, group: dist.ProcessGroup, device: torch.device) -> list[int]:
    """How many rows each rank has, by rank; they need not be equal."""
    counts = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(dist.get_world_size(group))]
    dist.all_gather(counts, torch.tensor([rows], device=device), group=group)
    return [int(count) for count in counts]


def gather_rows(own: Tensor, counts: list[int], group: dist.ProcessGroup) -> Tensor:
    """The rows of all ranks, in the order of ranks; a rank's gradient is the sum of what all ranks learn of its rows.

    Shapes: own [counts[rank], E] -> [sum(counts), E].
    """
    gathered: Tensor = _GatherRows.apply(own, counts, group)  # type: ignore[no-untyped-call]
    return gathered


def every_row(own: Tensor, counts: list[int], group: dist.ProcessGroup) -> Tensor:
    """`gather_rows` without a gradient, for rows of any kind."""
    padded = own.new_zeros(max(counts), own.shape[1])  # ranks exchange equal shapes only
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, counts: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.counts, ctx.group = counts, group
        return every_row(own, counts, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total.split(ctx.counts)[dist.get_rank(ctx.group)], None, None


class Ring:
    """Ranks in a circle, each handing its share to the next: memory holds one share at a time.

    `group` None is a circle of one, which hands nothing on.
    """

    def __init__(self, rows: int, group: dist.ProcessGroup | None, device: torch.device) -> None:
        self.group = group
        self.counts = [rows] if group is None else row_counts(rows, group, device)
        self.rank = 0 if group is None else dist.get_rank(group)

    @property
    def size(self) -> int:
        return len(self.counts)

    def hand_on(self, share: Tensor, hops: int) -> Tensor:
        """Give away the share that came here in `hops` hops, and receive the one behind it.

        Shapes: share [counts[rank - hops], E] -> [counts[rank - hops - 1], E].
        """
        if self.group is None:
            return share
        after, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        received = share.new_empty(self.counts[(self.rank - hops - 1) % self.size], share.shape[1])
        exchanges = [
            dist.P2POp(dist.isend, share.contiguous(), dist.get_global_rank(self.group, after), self.group),
            dist.P2POp(dist.irecv, received, dist.get_global_rank(self.group, before), self.group),
        ]
        for work in dist.batch_isend_irecv(exchanges):
            work.wait()
        return received
