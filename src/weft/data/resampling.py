"""Changing the sampling rate of a signal."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from weft.core.errors import DataError

MAX_FILTER_VALUES = 2**23  # a rate of a damaged header would take gigabytes; 48, 44.1 and 96.001 kHz to 16 take less than this
_ZERO_CROSSINGS = 32  # of the sinc on either side
_PASSED = 0.95  # of the lower Nyquist frequency; above it the filter falls off
_KAISER_BETA = 9.0  # side lobes at -90 dB, below the noise of 16 bits


def resample(samples: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """The same signal at another rate, low-passed below half of the lower rate.

    Shapes: [S] -> [ceil(S * to_hz / from_hz)] float32. The signal is taken for silent outside.
    Raises: DataError for a rate that no recorder writes, so odd or so high that the filter between the two would be huge.
    """
    if from_hz == to_hz:
        return np.asarray(samples, np.float32)
    divisor = math.gcd(from_hz, to_hz)
    up, down = to_hz // divisor, from_hz // divisor
    if 2 * _reach(up, down) * up > MAX_FILTER_VALUES:
        raise DataError(f"has {from_hz:,} samples a second, which cannot be brought to {to_hz:,}; is its header damaged?")
    table = _filters(up, down)
    taps = table.shape[1]
    total = -(-len(samples) * up // down)
    signal = torch.from_numpy(np.asarray(samples, np.float32))
    padded = torch.nn.functional.pad(signal, (taps // 2 - 1, taps + down))
    out = torch.zeros(total)
    for phase in range(min(up, total)):
        # outputs phase, phase + up, ... share one filter and stand `down` inputs apart
        count = -(-(total - phase) // up)
        windows = padded[phase * down // up :].unfold(0, taps, down)[:count]
        out[phase::up] = windows @ table[phase]
    return out.numpy()


@lru_cache(maxsize=8)
def _filters(up: int, down: int) -> Tensor:
    """Kaiser-windowed sinc filters, one for each place of an output between two inputs: [up, taps] float32."""
    cutoff = min(1.0, up / down) * _PASSED
    reach = _reach(up, down)
    fraction = (torch.arange(up, dtype=torch.float64) * down % up / up)[:, None]
    distance = torch.arange(1 - reach, reach + 1, dtype=torch.float64) - fraction
    window = torch.special.i0(_KAISER_BETA * (1 - (distance / reach) ** 2).clamp_min(0).sqrt())
    filters = torch.special.sinc(cutoff * distance) * window * (distance.abs() <= reach)
    return (filters / filters.sum(1, keepdim=True)).float()  # a constant stays what it is


def _reach(up: int, down: int) -> int:
    """Inputs on either side of an output that its filter reads."""
    return math.ceil(_ZERO_CROSSINGS / (min(1.0, up / down) * _PASSED))
