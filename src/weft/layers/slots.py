"""The three slots of a block, and what a block tells the modules in them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from weft.core.attention_rule import AttentionRule
from weft.core.cache import Cache
from weft.core.routing import Routing

SLOTS = ("before_attention", "before_feed_forward", "after_block")


@dataclass(frozen=True)
class BlockContext:
    """What holds for all blocks of one forward: the rule, rotary tables if any, token modality, the cache, and how many learned
    queries stand before the text of every row. `query_scale` [B, 1, T, 1] multiplies the queries of models that sharpen their
    attention in long texts."""

    rule: AttentionRule
    rotary: tuple[Tensor, Tensor] | None = None
    modality: Tensor | None = None
    cache: Cache | None = None
    num_queries: int = 0
    routing: Routing | None = None  # None: every token through the layers themselves
    query_scale: Tensor | None = None


class PassThrough(nn.Module):
    """An empty slot. It is called without the machinery of hooks: a decoding step passes three of them in every block."""

    def __call__(self, hidden: Tensor, memory: dict[str, Any], context: BlockContext) -> tuple[Tensor, dict[str, Any]]:
        return hidden, memory

    def forward(self, hidden: Tensor, memory: dict[str, Any], context: BlockContext) -> tuple[Tensor, dict[str, Any]]:
        return hidden, memory


@contextmanager
def empty_slots(model: nn.Module, kinds: Collection[str] = SLOTS) -> Iterator[None]:
    """Inside the block the slots of these kinds are empty in all the model; behind it, what stood there stands there again."""
    emptied = [(block, kind, getattr(block, kind)) for block in model.modules() for kind in kinds if hasattr(block, kind)]
    for block, kind, _ in emptied:
        setattr(block, kind, PassThrough())
    try:
        yield
    finally:
        for block, kind, held in emptied:
            setattr(block, kind, held)
