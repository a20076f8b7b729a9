"""The two losses over all pairs of two sides, computed in blocks of rows: no matrix of all pairs ever exists.

Letters: n rows of this rank, B of all ranks, E width, c rows of a block. Row i of one side belongs to row i of the other.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from weft.objectives.exchange import Ring, gather_rows, row_counts


def softmax_pair_loss(
    media: Tensor,
    text: Tensor,
    scale: Tensor,
    text_scale: Tensor | None = None,
    *,
    chunk: int,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """The sum over this rank's pairs of (media-to-text + text-to-media cross entropy) / 2, against the rows of all ranks.

    The sum over ranks is the loss of all pairs on one rank, and so is the sum of gradients. A block's logits, c x B, are
    computed again in the backward. `text_scale` is that of text-to-media, None: `scale`.

    Shapes: media, text [n, E], scale, text_scale [] -> [].
    """
    every_media, every_text, first = media, text, 0
    if group is not None:
        counts = row_counts(len(media), group, media.device)
        every_media, every_text = gather_rows(torch.cat([media, text], dim=1), counts, group).chunk(2, dim=1)
        first = sum(counts[: dist.get_rank(group)])
    told = _cross_entropy(media, every_text, scale, first, chunk)
    shown = _cross_entropy(text, every_media, scale if text_scale is None else text_scale, first, chunk)
    return (told + shown) / 2


def _cross_entropy(rows: Tensor, candidates: Tensor, scale: Tensor, first: int, chunk: int) -> Tensor:
    target = torch.arange(first, first + len(rows), device=rows.device)
    if len(rows) <= chunk:
        return _block_cross_entropy(rows, candidates, scale, target)
    blocks = [
        checkpoint(_block_cross_entropy, *block, use_reentrant=False, preserve_rng_state=False)
        for block in ((r, candidates, scale, t) for r, t in zip(rows.split(chunk), target.split(chunk), strict=True))
    ]
    return torch.stack(blocks).sum()


def _block_cross_entropy(rows: Tensor, candidates: Tensor, scale: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(scale * (rows @ candidates.T), target, reduction="sum")


def sigmoid_pair_loss(
    media: Tensor, text: Tensor, scale: Tensor, bias: Tensor, *, chunk: int, group: dist.ProcessGroup | None = None
) -> Tensor:
    """The sum over this rank's media and all ranks' texts of -log sigmoid(+-logit), + for pairs that belong together.

    The texts of other ranks come by from neighbour to neighbour, in the forward and again, with their gradients, in the
    backward; logits exist c x n at a time. The sum over ranks is the loss of all pairs on one rank, and so is the sum of
    gradients. Source: arXiv:2303.15343, section 3.3.

    Shapes: media, text [n, E], scale, bias [] -> [].
    """
    ring = Ring(len(text), group, text.device)
    loss: Tensor = _SigmoidOnRing.apply(media, text, scale, bias, chunk, ring)  # type: ignore[no-untyped-call]
    return loss


class _SigmoidOnRing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, media: Tensor, text: Tensor, scale: Tensor, bias: Tensor, chunk: int, ring: Ring) -> Tensor:
        ctx.save_for_backward(media, text, scale, bias)
        ctx.chunk, ctx.ring = chunk, ring
        total, guests = media.new_zeros(()), text
        for hops in range(ring.size):
            for start, rows in _blocks(media, chunk):
                logits = scale * (rows @ guests.T) + bias
                total += F.softplus(_against(logits, start, home=hops == 0)).sum()
            if hops + 1 < ring.size:
                guests = ring.hand_on(guests, hops)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        media, text, scale, bias = ctx.saved_tensors
        ring: Ring = ctx.ring
        of_media, of_guests = torch.zeros_like(media), torch.zeros_like(text)
        of_scale, of_bias, guests = torch.zeros_like(scale), torch.zeros_like(bias), text
        for hops in range(ring.size):
            for start, rows in _blocks(media, ctx.chunk):
                similarity = rows @ guests.T
                wrong = torch.sigmoid(_against(scale * similarity + bias, start, home=hops == 0))
                of_logits = _against(wrong, start, home=hops == 0)
                of_media[start : start + len(rows)] += of_logits @ guests
                of_guests += of_logits.T @ rows
                of_scale += (of_logits * similarity).sum()
                of_bias += of_logits.sum()
            # guests travel with what was learned about them; after the last hop both are home
            guests, of_guests = ring.hand_on(torch.cat([guests, of_guests], dim=1), hops).chunk(2, dim=1)
        factor = upstream * scale
        return factor * of_media, factor * of_guests, upstream * of_scale, upstream * of_bias, None, None


def _blocks(rows: Tensor, chunk: int) -> list[tuple[int, Tensor]]:
    return [(start, rows[start : start + chunk]) for start in range(0, len(rows), chunk)]


def _against(values: Tensor, start: int, home: bool) -> Tensor:
    """Values of a block of rows with the sign turned where row and column belong together; away from home no pair does."""
    if home:
        values.diagonal(start).neg_()
    return values
