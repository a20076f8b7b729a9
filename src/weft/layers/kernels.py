"""Attention kernels: several exact ways to compute one rule, and the choice between them.

Every kernel takes q [B, H, Tq, d], k and v [B, Hkv, Tk, d] (Hkv divides H) and an `AttentionRule`, and returns [B, H, Tq, d].
A query that sees no key returns zeros. A rule's score bias is added to the scores by all of them.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from weft.core.attention_rule import AttentionRule
from weft.core.memory import View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Kernel = Callable[[Tensor, Tensor, Tensor, AttentionRule], Tensor]

_NARROW, _SMALL = 256, 8 << 20  # numbers of a token; bytes of probabilities that so narrow a model sooner keeps

_forced: list[Kernel] = []
_recorded: list[list[Tensor]] = []


@contextmanager
def use_kernel(kernel: Kernel) -> Iterator[None]:
    """Use one kernel for every call inside the block."""
    _forced.append(kernel)
    try:
        yield
    finally:
        _forced.pop()


def force_kernel(name: str) -> AbstractContextManager[None]:
    """Use one kernel by name inside the block; tests compare each against `reference`."""
    return use_kernel(KERNELS[name])


@contextmanager
def record_attention() -> Iterator[list[Tensor]]:
    """Run the reference kernel inside the block and collect each call's probabilities [B, H, Tq, Tk] in call order."""
    maps: list[Tensor] = []
    _recorded.append(maps)
    try:
        with force_kernel("reference"):
            yield maps
    finally:
        _recorded.pop()


def attend(query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule, dropout: float = 0.0) -> Tensor:
    """Attention by the fastest kernel that is exact for this rule, device and shape.

    With `dropout` each probability is lost at that rate and the others are scaled up; a kernel that is forced drops none.
    """
    if _forced:
        return _forced[-1](query, key, value, rule)
    if dropout:
        return fused(query, key, value, rule, dropout)
    segments = rule.segments if query.shape[2] > 1 else None
    if segments is not None:
        return packed(query, key, value, rule)
    return _choose(query, key, rule)(query, key, value, rule)


def _choose(query: Tensor, key: Tensor, rule: AttentionRule) -> Kernel:
    # Measured: on a CPU the fused kernel's bf16 backward is 5 times slower than matmul and softmax at these lengths.
    reduced = query.requires_grad and query.dtype in (torch.bfloat16, torch.float16)
    if reduced and query.device.type == "cpu" and rule.shape[2] <= 1024:
        if key.dtype != query.dtype:
            return plain
        (samples, tokens, keys), (heads, _, width) = rule.shape, query.shape[1:]
        # Up to twice the head's width the probabilities are less than the queries, keys and values that give them again.
        # Beyond, keeping them takes 5% off a step of the demo, whose memory is Python's, and 2 to 7% off one of a wider model,
        # whose activations would take 18% more.
        small = samples * heads * tokens * keys * query.element_size() <= _SMALL and heads * width <= _NARROW
        return kept if small or keys <= 2 * width else recomputed
    return fused


def reference(query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
    """The definition, in float32, with every matrix written out."""
    key, value = _repeat_heads(query, key, value)
    scores = query.float() @ key.float().transpose(-1, -2) / math.sqrt(query.shape[-1])
    if rule.score_bias is not None:
        scores = scores + rule.score_bias(rule.queries.position, rule.keys.position).float()
    allowed = rule.allowed[:, None]
    probabilities = torch.softmax(scores.masked_fill(~allowed, float("-inf")), -1).nan_to_num(0.0)
    if _recorded:
        _recorded[-1].append(probabilities.detach())
    return (probabilities @ value.float()).to(query.dtype)


def plain(query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
    """Two matrix products and a softmax in the working precision."""
    dtype, query = query.dtype, query.to(key.dtype)
    key, value = _repeat_heads(query, key, value)
    scores = (query * (1.0 / math.sqrt(query.shape[-1]))) @ key.transpose(-1, -2)
    if rule.pattern != "full" or rule.score_bias is not None:
        scores = scores + rule.bias_in(scores.dtype)
    return _silence((torch.softmax(scores, -1).to(value.dtype) @ value).to(dtype), rule)


def kept(query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
    """`plain`, whose backward is one closed form from the probabilities."""
    return _in_closed_form(query, key, value, rule, keep=True)


def recomputed(query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
    """`kept`, whose backward computes the probabilities again instead of keeping them."""
    return _in_closed_form(query, key, value, rule, keep=False)


def _in_closed_form(query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule, keep: bool) -> Tensor:
    dtype, query = query.dtype, query.to(key.dtype)
    key, value = _repeat_heads(query, key, value)
    bias = rule.bias_in(key.dtype) if rule.pattern != "full" or rule.score_bias is not None else None
    return _silence(_ClosedForm.apply(query, key, value, bias, keep).to(dtype), rule)


class _ClosedForm(torch.autograd.Function):
    """softmax(query key^T / sqrt(d) + bias) value, its gradient in closed form from queries, keys and values.

    The copies in the order of heads are kept, not the projections that they were read from, so nothing is copied twice.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, keep: bool) -> Tensor:
        query = (query * (1.0 / math.sqrt(query.shape[-1]))).contiguous()
        key, value = key.contiguous(), value.contiguous()
        probabilities = _probabilities(query, key, bias)
        ctx.save_for_backward(query, key, value, bias, probabilities if keep else None)
        return probabilities.to(value.dtype) @ value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None]:
        query, key, value, bias, probabilities = ctx.saved_tensors
        gradient = gradient.to(value.dtype)
        if probabilities is None:
            probabilities = _probabilities(query, key, bias)
        of_value = probabilities.mT @ gradient
        of_scores = torch.ops.aten._softmax_backward_data(gradient @ value.mT, probabilities, -1, probabilities.dtype)
        of_bias = of_scores.sum_to_size(bias.shape) if bias is not None and ctx.needs_input_grad[3] else None
        of_query = (of_scores @ key).mul_(1.0 / math.sqrt(query.shape[-1]))
        return of_query, of_scores.mT @ query, of_value, of_bias, None


def _probabilities(scaled_query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    scores = scaled_query @ key.mT
    return torch.softmax(scores if bias is None else scores.add_(bias), -1)


def fused(query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule, dropout: float = 0.0) -> Tensor:
    """PyTorch's fused kernel. Keys and values may have a higher precision than the query's; it then rules."""
    batch, heads, tokens, width = query.shape
    dtype, groups = query.dtype, heads // key.shape[1]
    query = query.to(key.dtype)
    pattern = rule.pattern
    mask = rule.bias_in(key.dtype) if pattern == "general" or rule.score_bias is not None else None
    if tokens == 1 and groups > 1:
        # The heads of a group are queries of the same keys: as rows of one product they read the keys once.
        if mask is not None and mask.shape[1] > 1:
            mask = mask.reshape(len(mask), -1, groups, mask.shape[-1])
        query, groups = query.reshape(batch, -1, groups, width), 1
    causal = pattern == "causal" and tokens > 1 and mask is None
    out = F.scaled_dot_product_attention(query, key, value, mask, dropout, causal, enable_gqa=groups > 1)
    return _silence(out.reshape(batch, heads, tokens, width).to(dtype), rule)


def packed(query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
    """Sample by sample: gather the segments into a padded batch, attend inside it, scatter back."""
    segments = rule.segments
    if segments is None:
        return _choose(query, key, rule)(query, key, value, rule)
    batch, heads, tokens, width = query.shape

    def split(x: Tensor) -> Tensor:  # [B, H, T, d] -> [S, H, L, d]
        there, back = segments.rows(x.shape[1])
        rows = _Move.apply(x.transpose(1, 2).reshape(-1, width), there, back)
        return rows.view(len(segments.tokens), x.shape[1], -1, width)

    out = _choose(query, key, segments.rule)(split(query), split(key), split(value), segments.rule)
    there, back = segments.rows(heads)
    return _Move.apply(out.reshape(-1, width), back, there).view(batch, tokens, heads, width).transpose(1, 2)


def attend_view(query: Tensor, key: Tensor, value: Tensor, view: View) -> Tensor:
    """Attention to a memory: tokens that see the same features in one run, all runs in one call.

    Shapes: query [B, H, T, d], key and value [B, Hkv, M, d] -> [B, H, T, d]; zero for a token that sees nothing.
    """
    if view.queries is None or view.keys is None or view.place is None:
        return attend(query, key, value, view.rule)
    batch, heads, tokens, width = query.shape

    def runs(x: Tensor, index: Tensor) -> Tensor:  # [B, H, N, d] -> [R, H, L, d]
        rows = x.transpose(1, 2).reshape(-1, x.shape[1], width)
        return rows[index.clamp_min(0)].transpose(1, 2)

    there = torch.where(view.queries < 0, batch * tokens, view.queries).flatten()
    chosen = _Move.apply(query.transpose(1, 2).reshape(batch * tokens, -1), there, view.place)
    queries = chosen.view(*view.queries.shape, heads, width).transpose(1, 2)
    out = attend(queries, runs(key, view.keys), runs(value, view.keys), view.rule)
    rows = out.transpose(1, 2).reshape(view.queries.numel(), -1)
    return _Move.apply(rows, view.place, there).view(batch, tokens, heads, width).transpose(1, 2)


class _Move(torch.autograd.Function):
    """Rows to other places and back; the index one past the end brings zeros.

    Each row has at most one place, so the way back is a gather too: 7 percent of a small model's step less than indexing.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(there, back)
        return torch.cat((rows, rows.new_zeros(1, rows.shape[1]))).index_select(0, there)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        there, back = ctx.saved_tensors
        return _Move.apply(gradient, back, there), None, None


KERNELS: dict[str, Kernel] = {
    "reference": reference,
    "plain": plain,
    "kept": kept,
    "recomputed": recomputed,
    "fused": fused,
    "packed": packed,
}


def _repeat_heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    groups = query.shape[1] // key.shape[1]
    if groups == 1:
        return key, value
    return key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)


def _silence(out: Tensor, rule: AttentionRule) -> Tensor:
    """Zero for a query that sees nothing, whatever its row of the softmax was."""
    if rule.everyone_sees or rule.pattern != "general":
        return out
    return out * rule.sighted.to(out.dtype)
