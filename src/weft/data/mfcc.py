"""Mel-frequency cepstral coefficients as Kaldi computes them: what HuBERT's first targets are clusters of."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

SAMPLE_RATE_HZ = 16_000
WINDOW_SAMPLES = 400  # 25 ms
HOP_SAMPLES = 160  # 10 ms
_SPECTRUM_SAMPLES = 512  # the next power of two
_NUM_MELS = 23
_LOWEST_HZ = 20.0
_PREEMPHASIS = 0.97
_LIFTER = 22


def mfcc(samples: Tensor, num_coefficients: int = 13) -> Tensor:
    """The cepstral coefficients of whole windows, 100 a second.

    Shapes: samples [S] at 16 kHz, S at least 400 -> [1 + (S - 400) // 160, num_coefficients] float32.
    Source: Kaldi's defaults, without dither and with the zeroth coefficient in place of the energy.
    """
    frames = samples.float().unfold(0, WINDOW_SAMPLES, HOP_SAMPLES)
    frames = frames - frames.mean(1, keepdim=True)
    before = torch.cat((frames[:, :1], frames[:, :-1]), 1)
    frames = (frames - _PREEMPHASIS * before) * _window()
    power = torch.fft.rfft(frames, _SPECTRUM_SAMPLES).abs().square()
    level = (power @ _filters().T).clamp_min(torch.finfo(torch.float32).eps).log()
    return level @ _cosines(num_coefficients)


def with_deltas(features: Tensor) -> Tensor:
    """Features, their slopes over five frames and the slopes of these, side by side; the ends are repeated.

    Shapes: [T, C] -> [T, 3 * C].
    """
    slopes = _slopes(features)
    return torch.cat((features, slopes, _slopes(slopes)), 1)


def mfcc_frames(samples: Tensor) -> Tensor:
    """The 39 numbers of HuBERT's first targets for each of its frames, 50 a second: [1 + (S - 400) // 320, 39]."""
    return with_deltas(mfcc(samples))[::2]


def _slopes(features: Tensor) -> Tensor:
    """The least-squares slope through the five frames around each."""
    padded = F.pad(features.T[None], (2, 2), mode="replicate")[0].T
    length = len(features)
    near, far = padded[3 : 3 + length] - padded[1 : 1 + length], padded[4 : 4 + length] - padded[:length]
    return (near + 2 * far) / 10


@lru_cache(maxsize=1)
def _window() -> Tensor:
    """Kaldi's "povey" window: a symmetric Hann window to the power of 0.85."""
    return torch.hann_window(WINDOW_SAMPLES, periodic=False, dtype=torch.float64).pow(0.85).float()


@lru_cache(maxsize=1)
def _filters() -> Tensor:
    """Triangles on the mel scale 1127 ln(1 + f / 700), straight in mels: [23, 257]."""

    def mel(hertz: Tensor) -> Tensor:
        return 1127 * (1 + hertz / 700).log()

    low, high = mel(torch.tensor((_LOWEST_HZ, SAMPLE_RATE_HZ / 2), dtype=torch.float64))
    step = (high - low) / (_NUM_MELS + 1)
    bins = mel(torch.linspace(0, SAMPLE_RATE_HZ / 2, _SPECTRUM_SAMPLES // 2 + 1, dtype=torch.float64))
    middle = low + step * torch.arange(1, _NUM_MELS + 1, dtype=torch.float64)[:, None]
    return (1 - (bins - middle).abs() / step).clamp_min(0).float()


@lru_cache(maxsize=4)
def _cosines(num_coefficients: int) -> Tensor:
    """The orthonormal cosine transform with Kaldi's lifter, which evens out the sizes: [23, num_coefficients]."""
    k = torch.arange(num_coefficients, dtype=torch.float64)
    n = torch.arange(_NUM_MELS, dtype=torch.float64)[:, None]
    transform = (math.pi / _NUM_MELS * (n + 0.5) * k).cos() * math.sqrt(2 / _NUM_MELS)
    transform[:, 0] = math.sqrt(1 / _NUM_MELS)
    return (transform * (1 + _LIFTER / 2 * (math.pi * k / _LIFTER).sin())).float()
