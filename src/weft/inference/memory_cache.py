"""Keys and values of what stands beside a text, kept while the text is continued."""

from __future__ import annotations

import torch
from torch import Tensor

from weft.core.memory import NOTHING, Memory


class MemoryCache:
    """One memory of a cache: the items of every row so far, and each layer's keys and values [B, H, M, d] of their features.

    New items are numbered behind those that a row holds. A feature whose place in the text is forgotten is forgotten with it.
    """

    def __init__(self, memory: Memory) -> None:
        rows = len(memory.item)
        self.item = memory.item.new_zeros(rows, 0)
        self.place = memory.item.new_zeros(rows, 0)
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, memory: Memory, before: int) -> Memory:
        """Record the features of a new part of the text, which stands behind `before` tokens; returns the memory of that part.

        Its items, numbered from 0 in the part, go on from those of the row.
        """
        known = self.item.amax(1, keepdim=True) + 1 if self.item.shape[1] else self.item.new_zeros(len(self.item), 1)
        item = torch.where(memory.item < 0, memory.item, memory.item + known)
        place = torch.full_like(item, -1) if memory.place is None else memory.place + before
        self.item, self.place = torch.cat((self.item, item), 1), torch.cat((self.place, place), 1)
        return Memory(memory.values, self.item, memory.visible)

    def seen(self, visible: Tensor) -> Memory:
        """What tokens behind all that is stored look at. Shapes: visible [B, T, 2]."""
        return Memory(visible.new_zeros(len(visible), 0, 0, dtype=torch.float32), self.item, visible)

    def append(self, layer: int, new: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
        """Add a layer's keys and values of the features that `extend` recorded last; returns those of all, None for none."""
        if new is not None:
            if layer in self._layers:
                keys, values = (torch.cat(pair, 2) for pair in zip(self._layers[layer], new, strict=True))
                new = keys, values
            self._layers[layer] = new
        return self._layers.get(layer)

    def select(self, rows: Tensor) -> None:
        """Reorder, drop or repeat rows."""
        rows = rows.to(self.item.device)
        self.item, self.place = self.item[rows], self.place[rows]
        self._layers = {layer: (keys[rows], values[rows]) for layer, (keys, values) in self._layers.items()}

    def crop(self, length: int) -> None:
        """Forget the items that stand at token `length` or behind it."""
        kept = self.place < length
        columns = kept.any(0)
        self.item = torch.where(kept, self.item, NOTHING)[:, columns]
        self.place = self.place[:, columns]
        self._layers = {layer: (k[:, :, columns], v[:, :, columns]) for layer, (k, v) in self._layers.items()}
