"""Log-mel spectrograms as Whisper reads them."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

SAMPLE_RATE_HZ = 16_000
WINDOW_SAMPLES = 400  # 25 ms
HOP_SAMPLES = 160  # 10 ms
_DYNAMIC_RANGE = 8.0  # powers of ten below the loudest bin; what is quieter is cut off there


def log_mel(samples: Tensor, num_mels: int = 80) -> Tensor:
    """Log power in mel bands, cut off 80 dB below the loudest, shifted and scaled into a range of 2.

    Shapes: samples [..., S] at 16 kHz, S at least 201 -> [..., num_mels, S // 160] float32. Digital silence is -1.5 everywhere.
    Source: Whisper, arXiv:2212.04356.
    """
    window = torch.hann_window(WINDOW_SAMPLES, device=samples.device)
    flat = samples.float().reshape(-1, samples.shape[-1])
    spectrum = torch.stft(flat, WINDOW_SAMPLES, HOP_SAMPLES, window=window, pad_mode="reflect", return_complex=True)
    power = spectrum[..., : samples.shape[-1] // HOP_SAMPLES].abs().square()  # a frame centred behind the end is left out
    level = (slaney_filters(num_mels).to(samples.device) @ power).clamp_min(1e-10).log10()
    loudest = level.amax((1, 2), keepdim=True)
    scaled = (level.maximum(loudest - _DYNAMIC_RANGE) + 4.0) / 4.0
    return scaled.reshape(*samples.shape[:-1], *scaled.shape[1:])


@lru_cache(maxsize=8)
def slaney_filters(
    num_mels: int,
    window_samples: int = WINDOW_SAMPLES,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    lowest_hz: float = 0.0,
    highest_hz: float = 8000.0,
) -> Tensor:
    """Triangles of equal area, equally far apart on Slaney's mel scale: [num_mels, window_samples // 2 + 1]."""
    ends = _hertz_of(torch.linspace(_mel_of(lowest_hz), _mel_of(highest_hz), num_mels + 2, dtype=torch.float64))
    return (_triangles(ends, window_samples, sample_rate_hz) * 2 / (ends[2:] - ends[:-2])[:, None]).float()


@lru_cache(maxsize=8)
def htk_filters(
    num_mels: int, window_samples: int, sample_rate_hz: int, lowest_hz: float = 0.0, highest_hz: float = 8000.0
) -> Tensor:
    """Triangles of height one, equally far apart on the mel scale of HTK: [num_mels, window_samples // 2 + 1]."""
    low, high = (2595 * math.log10(1 + hertz / 700) for hertz in (lowest_hz, highest_hz))
    ends = 700 * (10 ** (torch.linspace(low, high, num_mels + 2, dtype=torch.float64) / 2595) - 1)
    return _triangles(ends, window_samples, sample_rate_hz).float()


def _triangles(ends: Tensor, window_samples: int, sample_rate_hz: int) -> Tensor:
    """Triangles of height one from each end to the next but one. Shapes: ends [M + 2] in Hz -> [M, window_samples // 2 + 1]."""
    left, middle, right = (ends.unfold(0, 3, 1)[:, i, None] for i in range(3))
    bins = torch.linspace(0.0, sample_rate_hz / 2, window_samples // 2 + 1, dtype=torch.float64)
    rising, falling = (bins - left) / (middle - left), (right - bins) / (right - middle)
    return rising.minimum(falling).clamp_min(0)


_LINEAR_HZ_PER_MEL = 200 / 3
_LOG_FROM_HZ = 1000.0  # linear below, logarithmic above: 27 mels for a factor of 6.4
_LOG_FROM_MEL = _LOG_FROM_HZ / _LINEAR_HZ_PER_MEL
_LOG_STEP = math.log(6.4) / 27


def _mel_of(hertz: float) -> float:
    if hertz < _LOG_FROM_HZ:
        return hertz / _LINEAR_HZ_PER_MEL
    return _LOG_FROM_MEL + math.log(hertz / _LOG_FROM_HZ) / _LOG_STEP


def _hertz_of(mels: Tensor) -> Tensor:
    above = _LOG_FROM_HZ * ((mels - _LOG_FROM_MEL) * _LOG_STEP).exp()
    return torch.where(mels < _LOG_FROM_MEL, mels * _LINEAR_HZ_PER_MEL, above)
