"""The key-value cache of a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from weft.core.attention_rule import AttentionRule, RuleSide
from weft.core.errors import AttentionError
from weft.core.interfaces import LanguageModel
from weft.core.memory import Memory
from weft.inference.memory_cache import MemoryCache


class KeyValueCache:
    """Keys and values of all tokens so far, in buffers that grow by doubling.

    Implements `weft.core.cache.Cache`. Shapes: per layer [B, H, capacity, d]; the rule's vectors [3, B, capacity] (order,
    segment, position). Rows may be padded anywhere: a padding token has segment 0 and no query sees it. `capacity` is where the
    buffers start, so a caller who knows how long its sequence becomes never pays for growth.
    """

    def __init__(self, num_layers: int, capacity: int = 256, window: int | None = None) -> None:
        self.keys: list[Tensor | None] = [None] * num_layers
        self.values: list[Tensor | None] = [None] * num_layers
        self.capacity = max(capacity, 1)
        self.window = window
        self._sides: Tensor | None = None
        self._hidden: Tensor | None = None  # [B, 1, 1, capacity] scores of a next token: -inf at keys that it never sees
        self._all_seen: bool | None = None  # whether a next token sees every key; None: nobody has looked since rows changed
        self._length = 0
        self._memories: dict[str, MemoryCache] = {}

    @classmethod
    def of(cls, language_model: LanguageModel, capacity: int = 256) -> Self:
        """The cache of a language model, with its window."""
        return cls(len(language_model.blocks), capacity, language_model.config.window)

    @property
    def length(self) -> int:
        return self._length

    @property
    def side(self) -> RuleSide | None:
        """Order, segment and position of the stored tokens, each [B, length]."""
        return None if self._sides is None else RuleSide(*self._sides[:, :, : self._length].unbind(0))

    def extend(self, side: RuleSide) -> AttentionRule:
        self._all_seen = self._hidden = None
        self._record(torch.stack(tuple(side)))
        return AttentionRule(*side, window=self.window, keys=self.side if self._length > side.order.shape[1] else None)

    def advance(self, side: Tensor) -> AttentionRule:
        """`extend` by one token a row, without looking at the data again after the first such token.

        Shapes: side [3, B, 1] = order, segment, position. The caller promises what decoding gives: in every row the token goes
        on with the same segment, not 0, and comes later in order than the segment's tokens before it.
        """
        if self.window is not None or self._sides is None:
            return self.extend(RuleSide(*side.unbind(0)))
        if self._all_seen is None:
            self._all_seen = bool((self._sides[1, :, : self._length] == side[1]).all())
        self._record(side)
        order, segment, position = side.unbind(0)
        rule = AttentionRule(order, segment, position, keys=self.side)
        if self._all_seen:
            return rule.assume(pattern="full", everyone_sees=True)
        return rule.assume(pattern="general", everyone_sees=True, bias=self._bias(segment))

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        start = self._length - keys.shape[2]
        if start == 0:  # kept as they are: a prompt's first token does not wait for buffers that only later ones need
            self.keys[layer], self.values[layer] = keys, values
            return keys, values
        self.keys[layer] = written_keys = self._write(self.keys[layer], keys, start)
        self.values[layer] = written_values = self._write(self.values[layer], values, start)
        return written_keys[:, :, : self._length], written_values[:, :, : self._length]

    def extend_memory(self, memory: Mapping[str, Any]) -> dict[str, Any]:
        """Record what stands beside the tokens that `extend` recorded last; returns what they look at, all earlier features
        included."""
        extended = dict(memory)
        for name, part in memory.items():
            if isinstance(part, Memory):
                kept = self._memories.setdefault(name, MemoryCache(part))
                extended[name] = kept.extend(part, self._length - part.visible.shape[1])
        return extended

    def append_memory(self, name: str, layer: int, new: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
        return self._memories[name].append(layer, new)

    def memory(self, visible: Mapping[str, Tensor]) -> dict[str, Any]:
        """What tokens behind all that is stored look at. Shapes: visible[name] [B, T, 2]."""
        return {name: kept.seen(visible[name]) for name, kept in self._memories.items() if name in visible}

    def select(self, rows: Tensor | Sequence[int]) -> None:
        index = torch.as_tensor(rows, dtype=torch.long)
        self.keys = [None if k is None else self._take(k, index) for k in self.keys]
        self.values = [None if v is None else self._take(v, index) for v in self.values]
        if self._sides is not None:
            self._sides = self._sides.index_select(1, index.to(self._sides.device))
        for memory in self._memories.values():
            memory.select(index)
        self._all_seen = self._hidden = None

    def crop(self, length: int) -> None:
        if not 0 <= length <= self._length:
            raise AttentionError(
                f"cannot crop a cache to {length} tokens: it holds {self._length}; give a length from 0 to that"
            )
        self._length = length
        for memory in self._memories.values():
            memory.crop(length)
        self._all_seen = self._hidden = None

    def _take(self, buffer: Tensor, rows: Tensor) -> Tensor:
        """Chosen rows in a buffer of the same capacity; only stored tokens are copied."""
        taken = buffer.new_empty(len(rows), *buffer.shape[1:])
        taken[:, :, : self._length] = buffer[:, :, : self._length].index_select(0, rows.to(buffer.device))
        return taken

    def _grow(self, tokens: int) -> None:
        while self.capacity < tokens:
            self.capacity *= 2

    def _record(self, side: Tensor) -> None:
        """Store the rule's vectors [3, B, T] of new tokens."""
        start, self._length = self._length, self._length + side.shape[2]
        self._grow(self._length)
        if self._sides is None or self._sides.shape[2] < self._length:
            grown = side.new_zeros(3, side.shape[1], self.capacity)
            if self._sides is not None:
                grown[:, :, :start] = self._sides[:, :, :start]
            self._sides = grown
        self._sides[:, :, start : self._length] = side

    def _bias(self, segment: Tensor) -> Tensor:
        """[B, 1, 1, length], a view of what the first step made: all that comes after is seen."""
        assert self._sides is not None
        if self._hidden is None or self._hidden.shape[-1] < self._length:
            other = self._sides[1] != segment
            other[:, self._length :] = False
            self._hidden = torch.zeros_like(other, dtype=torch.float32).masked_fill_(other, float("-inf"))[:, None, None]
        return self._hidden[..., : self._length]

    def _write(self, buffer: Tensor | None, new: Tensor, start: int) -> Tensor:
        assert buffer is not None
        if buffer.shape[2] < self._length or buffer.dtype != new.dtype:
            self._grow(self._length)
            grown = new.new_empty(*new.shape[:2], self.capacity, new.shape[3], dtype=new.dtype)
            grown[:, :, :start] = buffer[:, :, :start]
            buffer = grown
        buffer[:, :, start : self._length] = new
        return buffer
