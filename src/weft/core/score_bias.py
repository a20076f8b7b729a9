"""Numbers that a language model adds to its attention scores by where tokens stand: ALiBi, T5's relative positions."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class ScoreBias(Protocol):
    """What is added to the scores, scaled as the softmax takes them, beside what an `AttentionRule` lets through.

    It reads positions, never indices or order, so it holds with a cache and for packed samples. Usually a module of the
    language model, whose forward gives it to the rule with `AttentionRule.with_score_bias`; every kernel then adds it.

    Shapes: query positions [B, Tq], key positions [B, Tk] -> [B or 1, H, Tq or 1, Tk], heads of the queries.
    """

    def __call__(self, query_positions: Tensor, key_positions: Tensor) -> Tensor: ...
