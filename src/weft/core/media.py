"""Encoded media: what encoders give to projectors, and projectors to fusions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from weft.core.layout import MediaLayout


@dataclass(frozen=True)
class MediaFeatures:
    """Features of N media units.

    Shapes: `values` [N, L, C]; `valid` [N, L] bool or None when every position is real; `unit_item` [N] the item that a unit
    belongs to, ascending; `layout` one entry per item; `instruction` [items, T] the tokens of what is asked about an item, -1
    behind their end, for the projectors that read it; `item_place` [items] the place of each item among the media of its
    sample, from 0, None where each is the first.
    """

    values: Tensor
    unit_item: Tensor
    layout: tuple[MediaLayout, ...]
    valid: Tensor | None = None
    instruction: Tensor | None = None
    item_place: Tensor | None = None

    def unit_place(self) -> Tensor:
        """The place of every unit among those of its item, from 0: [N]."""
        count = torch.arange(len(self.unit_item), device=self.unit_item.device)
        return count - torch.searchsorted(self.unit_item, self.unit_item)

    def by_item(self) -> tuple[Tensor, Tensor | None]:
        """The features of each item's units one after another, and which of them are real (None: all).

        Shapes: values [items, M, C], valid [items, M], with M the features of the item that has most units.
        """
        num_units = [layout.num_units for layout in self.layout]
        items, most = len(num_units), max(num_units, default=0)
        length, width = self.values.shape[1:]
        if min(num_units, default=0) == most:
            valid = None if self.valid is None else self.valid.reshape(items, most * length)
            return self.values.reshape(items, most * length, width), valid
        place = (self.unit_item, self.unit_place())
        values = self.values.new_zeros(items, most, length, width).index_put(place, self.values)
        real = torch.ones(self.values.shape[:2], dtype=torch.bool, device=values.device) if self.valid is None else self.valid
        valid = real.new_zeros(items, most, length).index_put(place, real)
        return values.flatten(1, 2), valid.flatten(1, 2)

    def of_items(self, items: Tensor) -> MediaFeatures:
        """The features of some items, in this order and as one unit each; an item may come several times. Shapes: items [P]."""
        values, valid = self.by_item()
        return MediaFeatures(
            values[items],
            torch.arange(len(items), device=items.device),
            tuple(self.layout[item] for item in items.tolist()),
            None if valid is None else valid[items],
        )

    def on_grids(self, function: Callable[[Tensor, int, int], Tensor]) -> MediaTokens:
        """`function(values, height, width)` of all units, as tokens in the order of the units.

        Units of one length may have different grids and become different numbers of tokens.

        Shapes: `function` takes values [n, L, C] of units of one grid and gives [n, K, D].
        """
        if len({(layout.height, layout.width) for layout in self.layout}) == 1:
            return MediaTokens.from_units(function(self.values, self.layout[0].height, self.layout[0].width), self)
        layouts = [self.layout[item] for item in self.unit_item.tolist()]
        units = zip(self.values.split(1), layouts, strict=True)
        tokens = [function(values, layout.height, layout.width)[0] for values, layout in units]
        counts = torch.tensor([len(unit) for unit in tokens], device=self.unit_item.device)
        return MediaTokens(torch.cat(tokens), self.unit_item.repeat_interleave(counts))


@dataclass(frozen=True)
class MediaTokens:
    """Projected tokens, flat and in item order.

    Shapes: `values` [P, D], `item` [P]; `spans` [S, 5] = item, offset in the item, row, start, length, once the batch is known;
    `filling` [P] bool, the tokens that only fill an item up, None where there are none.
    """

    values: Tensor
    item: Tensor
    spans: Tensor | None = None
    filling: Tensor | None = None

    @staticmethod
    def from_units(values: Tensor, features: MediaFeatures) -> MediaTokens:
        """Tokens [N, K, D] of units that each become the same number of tokens."""
        return MediaTokens(values.flatten(0, 1), features.unit_item.repeat_interleave(values.shape[1]))

    @staticmethod
    def one_each(values: Tensor, features: MediaFeatures) -> MediaTokens:
        """Tokens [N, L, D], one a feature; what stands behind the end of a shorter unit, as its layout says, is left out."""
        lengths = [layout.height * layout.width for layout in features.layout]
        if min(lengths, default=values.shape[1]) == values.shape[1]:
            tokens = MediaTokens.from_units(values, features)
            return tokens if features.valid is None else replace(tokens, filling=~features.valid.flatten())
        counts = torch.tensor(lengths, device=features.unit_item.device)[features.unit_item]
        real = torch.arange(values.shape[1], device=counts.device) < counts[:, None]
        return MediaTokens(values[real], features.unit_item.repeat_interleave(counts))
