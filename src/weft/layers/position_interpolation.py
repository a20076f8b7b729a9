"""Learned position grids at another resolution than the one they were learned at."""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

PositionInterpolation = Literal["offset", "plain", "antialiased"]


def interpolate_positions(grid: Tensor, side: int, method: PositionInterpolation) -> Tensor:
    """A square grid of position vectors, resampled bicubically in float32 to `side` x `side`; the same grid where it fits.

    "plain" lays the two grids edge to edge; "antialiased" also smooths where the grid shrinks; "offset" samples as if the new
    side were a tenth of a patch longer, which the original DINO code does to be safe from rounding.

    Shapes: grid [M * M, D] -> [side * side, D], rows first. Source: DINOv2, arXiv:2304.07193, and its published code.
    """
    learned = math.isqrt(len(grid))
    if learned == side:
        return grid
    square = grid.float().view(1, learned, learned, -1).permute(0, 3, 1, 2)
    if method == "offset":
        scale = (side + 0.1) / learned
        resampled = F.interpolate(square, scale_factor=(scale, scale), mode="bicubic")
    else:
        resampled = F.interpolate(square, size=(side, side), mode="bicubic", antialias=method == "antialiased")
    return resampled.flatten(2)[0].T.to(grid.dtype)
