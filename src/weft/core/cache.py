"""What a language model asks of a cache while decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from weft.core.attention_rule import AttentionRule, RuleSide


class Cache(Protocol):
    """Keys and values of the tokens seen so far, with the rule's vectors of those tokens."""

    def extend(self, side: RuleSide) -> AttentionRule:
        """Record the order, segment and position of new tokens; returns their rule against all keys, new ones included."""

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add one layer's keys and values [B, H, T, d] of the new tokens; returns those of all tokens."""

    def append_memory(self, name: str, layer: int, new: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
        """Add one layer's keys and values [B, H, N, d] of new features of a memory; returns those of all, None for none."""

    def select(self, rows: Tensor | Sequence[int]) -> None:
        """Reorder, drop or repeat rows."""

    def crop(self, length: int) -> None:
        """Forget every token from index `length` on."""

    @property
    def length(self) -> int:
        """Tokens stored per row, padding included."""
