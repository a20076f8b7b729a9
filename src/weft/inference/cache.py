"""The key-value cache of a language model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weft.core.attention_rule import AttentionRule, RuleSide


class KeyValueCache:
    """Keys and values of all tokens so far in buffers that grow by doubling.

    Implements `weft.core.cache.Cache`. Shapes: per layer [B, H, capacity, d]; the rule's vectors [B, capacity].
    Rows may be padded anywhere: a padding token has segment 0 and no query sees it.
    """

    def __init__(self, num_layers: int, capacity: int = 256, window: int | None = None) -> None:
        self.keys: list[Tensor | None] = [None] * num_layers
        self.values: list[Tensor | None] = [None] * num_layers
        self.capacity = capacity
        self.window = window
        self.side: RuleSide | None = None
        self._length = 0

    @property
    def length(self) -> int:
        return self._length

    def extend(self, side: RuleSide) -> AttentionRule:
        past = self.side
        self.side = side if past is None else RuleSide(*(torch.cat(pair, 1) for pair in zip(past, side, strict=True)))
        self._length = self.side.order.shape[1]
        if past is None:
            return AttentionRule(*side, window=self.window)
        return AttentionRule(*side, window=self.window, keys=self.side)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        start = self._length - keys.shape[2]
        self.keys[layer] = self._write(self.keys[layer], keys, start)
        self.values[layer] = self._write(self.values[layer], values, start)
        return self.keys[layer][:, :, : self._length], self.values[layer][:, :, : self._length]  # type: ignore[index]

    def _write(self, buffer: Tensor | None, new: Tensor, start: int) -> Tensor:
        batch, heads, tokens, width = new.shape
        if buffer is None or buffer.shape[2] < start + tokens:
            while self.capacity < start + tokens:
                self.capacity *= 2
            grown = new.new_empty(batch, heads, self.capacity, width)
            if buffer is not None:
                grown[:, :, :start] = buffer[:, :, :start]
            buffer = grown
        buffer[:, :, start : start + tokens] = new
        return buffer

    def select(self, rows: Tensor | Sequence[int]) -> None:
        index = torch.as_tensor(rows)
        self.keys = [None if k is None else k[index.to(k.device)] for k in self.keys]
        self.values = [None if v is None else v[index.to(v.device)] for v in self.values]
        if self.side is not None:
            self.side = RuleSide(*(x[index.to(x.device)] for x in self.side))

    def crop(self, length: int) -> None:
        if self.side is not None:
            self.side = RuleSide(*(x[:, :length] for x in self.side))
            self._length = min(length, self._length)
