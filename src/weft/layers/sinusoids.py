"""Positions as sines and cosines."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoids(length: int, width: int) -> Tensor:
    """The table of positions [length, width]: sines in the first half, cosines in the second.

    The wavelengths go from 2 pi to 10,000 * 2 pi in a geometric row. `width` is even and at least 4.
    Source: arXiv:1706.03762, with the halves side by side as Whisper has them (arXiv:2212.04356).
    """
    rates = torch.exp(torch.arange(width // 2, dtype=torch.float32) * (-math.log(10_000) / (width // 2 - 1)))
    angles = torch.arange(length, dtype=torch.float32)[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), 1)
