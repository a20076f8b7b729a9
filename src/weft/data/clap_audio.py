"""From a recording to the log-mel spectrogram in decibels that both systems called CLAP hear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from weft.core.errors import ConfigError
from weft.core.layout import MediaLayout
from weft.data.audio import open_clip
from weft.data.log_mel import slaney_filters
from weft.data.media_transform import MediaTransform, OpenedMedium


@dataclass(frozen=True, kw_only=True)
class ClapAudioTransform(MediaTransform):
    """How a recording becomes [num_mels, frames] decibels: a clip of fixed length, a short one filled with repetitions.

    `fill`: "whole" repeats a clip as often as it fits as a whole and ends in silence, as LAION's CLAP does; "cut" cuts the last
    repetition off, as Microsoft's does. Of a long recording the first `clip_seconds` are heard: published code takes a stretch
    at random, which would give one file other features every time. The defaults are LAION's files without fusion;
    `sizes` names both systems.

    Units: `clip_seconds`; windows and hops in samples; `lowest_hz` and `highest_hz` of the mel bands.
    Source: arXiv:2211.06687, arXiv:2206.04769; `frequency_min` 50 is what LAION's published files say.
    """

    num_mels: int = 64
    clip_seconds: float = 10.0
    sample_rate_hz: int = 48_000
    window_samples: int = 1024
    hop_samples: int = 480
    lowest_hz: float = 50.0
    highest_hz: float = 14_000.0
    fill: Literal["whole", "cut"] = "whole"

    def __post_init__(self) -> None:
        if self.num_samples <= self.window_samples // 2:
            raise ConfigError(
                f"clip_seconds={self.clip_seconds} is too short; it must hold more than {self.window_samples // 2} samples of "
                f"{self.sample_rate_hz} Hz"
            )
        if not 0 <= self.lowest_hz < self.highest_hz <= self.sample_rate_hz / 2:
            raise ConfigError(
                f"mel bands lie between 0 and {self.sample_rate_hz / 2:g} Hz, got {self.lowest_hz:g} to {self.highest_hz:g}"
            )

    @classmethod
    def sizes(cls) -> Mapping[str, Self]:
        """The published front ends by name."""
        return {
            "clap-laion": cls(),
            "clap-microsoft": cls(clip_seconds=5.0, sample_rate_hz=44_100, hop_samples=320, fill="cut"),
        }

    @property
    def num_samples(self) -> int:
        """Samples of a clip."""
        return round(self.clip_seconds * self.sample_rate_hz)

    @property
    def unit_shape(self) -> tuple[int, int]:
        return (self.num_mels, 1 + self.num_samples // self.hop_samples)

    def open(self, source: Any, unit: MediaLayout) -> OpenedMedium:
        samples = open_clip(source, self.num_samples, self.sample_rate_hz)
        return OpenedMedium(self.decibels(self.filled(samples)).numpy()[None], unit, None)

    def normalise(self, units: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(units))

    def filled(self, samples: np.ndarray) -> np.ndarray:
        """A clip of full length. Shapes: samples [S], S at least 1 and at most `num_samples` -> [num_samples]."""
        if self.fill == "cut":
            return np.resize(samples, self.num_samples)
        whole = np.zeros(self.num_samples, samples.dtype)
        repeated = np.tile(samples, self.num_samples // len(samples))
        whole[: len(repeated)] = repeated
        return whole

    def decibels(self, samples: np.ndarray) -> Tensor:
        """10 log10 of the power in mel bands, -100 at least. Shapes: [num_samples] -> [num_mels, frames] float32."""
        # in float64: where a band is all but silent, float32 would be wrong by more than a thousandth of a decibel
        signal = torch.from_numpy(samples).double()
        window = torch.hann_window(self.window_samples, dtype=torch.float64)
        spectrum = torch.stft(
            signal, self.window_samples, self.hop_samples, window=window, pad_mode="reflect", return_complex=True
        )
        filters = slaney_filters(
            self.num_mels, self.window_samples, self.sample_rate_hz, self.lowest_hz, self.highest_hz
        ).double()
        return (filters @ spectrum.abs().square()).clamp_min(1e-10).log10().mul(10).float()
