"""Learned positions of a class token and a square grid of patches, read at whatever grid the model has."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.checkpoints.rules import Rule


def position_table(source: str, target: str, side: int) -> Rule:
    """A table [1, 1 + G * G, D] becomes [1 + side * side, D]; the class token's row stays, another grid is interpolated.

    Bicubic, with corners not aligned, as EVA-CLIP and BLIP-2 do it when a model goes to another resolution. The way back keeps
    the model's grid.
    """

    def forward(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        (table,) = tensors
        if table.dim() != 3 or len(table) != 1 or math.isqrt(table.shape[1] - 1) ** 2 != table.shape[1] - 1:
            raise ValueError(f"expected one row for the class token and a square grid of them, got {tuple(table.shape)}")
        return (resized(table[0], side),)

    return Rule((source,), (target,), forward, lambda tensors: (tensors[0][None],))


def resized(table: Tensor, side: int) -> Tensor:
    """The rows of a class token and of a square grid, [1 + G * G, D] -> [1 + side * side, D]."""
    if len(table) == 1 + side * side:
        return table
    known = math.isqrt(len(table) - 1)
    grid = table[1:].T.reshape(1, -1, known, known)
    grid = F.interpolate(grid.float(), size=(side, side), mode="bicubic", align_corners=False).to(table.dtype)
    return torch.cat((table[:1], grid[0].flatten(1).T))
