"""Features that say where their box is."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from weft.core.box_geometry import NUM_BOX_NUMBERS, BoxKind, box_geometry

Joined = Literal["added", "side_by_side"]


def joined_width(width: int, kind: BoxKind | None, joined: Joined) -> int:
    """The width of features of `width` that say where their box is."""
    return width if kind is None or joined == "added" else width + NUM_BOX_NUMBERS[kind]


class WithBoxNumbers(nn.Module):
    """Add a projection of the box's numbers to its feature, or lay them side by side; without a kind, change nothing.

    Shapes: values [..., C], boxes [..., 4] in fractions of the picture -> [..., C], or C and the count of numbers.
    """

    def __init__(self, width: int, kind: BoxKind | None, joined: Joined) -> None:
        super().__init__()
        self.kind = kind
        self.projection: nn.Linear | None = None
        if kind is not None and joined == "added":
            self.projection = nn.Linear(NUM_BOX_NUMBERS[kind], width)

    def forward(self, values: Tensor, boxes: Tensor) -> Tensor:
        if self.kind is None:
            return values
        numbers = box_geometry(boxes, self.kind).to(values.dtype)
        return torch.cat((values, numbers), -1) if self.projection is None else values + self.projection(numbers)
