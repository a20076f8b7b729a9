"""Encoded media: what encoders give to projectors, and projectors to fusions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from weft.core.layout import MediaLayout


@dataclass(frozen=True)
class MediaFeatures:
    """Features of N media units.

    Shapes: `values` [N, L, C]; `valid` [N, L] bool or None when every position is real; `unit_item` [N] the item that a unit
    belongs to, ascending; `layout` one entry per item.
    """

    values: Tensor
    unit_item: Tensor
    layout: tuple[MediaLayout, ...]
    valid: Tensor | None = None


@dataclass(frozen=True)
class MediaTokens:
    """Projected tokens, flat and in item order.

    Shapes: `values` [P, D], `item` [P]; `spans` [S, 5] = item, offset in the item, row, start, length, once the batch is known.
    """

    values: Tensor
    item: Tensor
    spans: Tensor | None = None

    @staticmethod
    def from_units(values: Tensor, features: MediaFeatures) -> MediaTokens:
        """Tokens [N, K, D] of units that each become the same number of tokens."""
        return MediaTokens(values.flatten(0, 1), features.unit_item.repeat_interleave(values.shape[1]))
