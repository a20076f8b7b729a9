"""From a recording to the log-mel spectrogram in decibels that both systems called CLAP hear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weft.core.errors import ConfigError
from weft.core.layout import MediaLayout
from weft.data.audio import open_clip
from weft.data.log_mel import htk_filters, slaney_filters
from weft.data.media_transform import MediaTransform, OpenedMedium

NUM_VIEWS = 4
"""Spectrograms that are fused: the whole recording, and a clip of its beginning, its middle and its end."""

BLOCK_FRAMES = 4096
"""Frames of a long recording whose spectra, 34 MB, are in memory together."""


@dataclass(frozen=True, kw_only=True)
class ClapAudioTransform(MediaTransform):
    """How a recording becomes [num_mels, frames] decibels: a clip of fixed length, a short one filled with repetitions.

    `fill`: "whole" repeats a clip as often as it fits as a whole and ends in silence, as LAION's CLAP does; "cut" cuts the last
    repetition off, as Microsoft's does. Of a long recording the first `clip_seconds` are heard: published code takes a stretch
    at random, which would give one file other features every time. The defaults are LAION's files without fusion;
    `sizes` names both systems.

    `fused`, for LAION's towers with fusion, hears a long recording to its end, as [`NUM_VIEWS` + 1, num_mels, frames]: all of
    it shrunk to the frames of a clip, then three clips. The places where a clip may begin are split into thirds, and one begins
    in the middle of each, where published code draws the place. The last plane is one throughout; of a recording no longer than
    a clip it is zero, and its spectrogram stands four times. The mel bands are then HTK's, of height one, and not Slaney's. All
    samples of the recording are in memory for it, 0.7 GB an hour.

    Units: `clip_seconds`; windows and hops in samples; `lowest_hz` and `highest_hz` of the mel bands.
    Source: arXiv:2211.06687, arXiv:2206.04769; from 50 Hz in LAION's configs of both forms (`transformers`' own default is 0).
    """

    num_mels: int = 64
    clip_seconds: float = 10.0
    sample_rate_hz: int = 48_000
    window_samples: int = 1024
    hop_samples: int = 480
    lowest_hz: float = 50.0
    highest_hz: float = 14_000.0
    fill: Literal["whole", "cut"] = "whole"
    fused: bool = False

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
            "clap-laion-fused": cls(fused=True),
            "clap-microsoft": cls(clip_seconds=5.0, sample_rate_hz=44_100, hop_samples=320, fill="cut"),
        }

    @property
    def num_samples(self) -> int:
        """Samples of a clip."""
        return round(self.clip_seconds * self.sample_rate_hz)

    @property
    def unit_shape(self) -> tuple[int, ...]:
        spectrogram = (self.num_mels, 1 + self.num_samples // self.hop_samples)
        return (NUM_VIEWS + 1, *spectrogram) if self.fused else spectrogram

    def open(self, source: Any, unit: MediaLayout) -> OpenedMedium:
        if self.fused:
            whole = open_clip(source, None, self.sample_rate_hz)
            return OpenedMedium(self.views(whole).numpy()[None], unit, None)
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

    def views(self, samples: np.ndarray) -> Tensor:
        """What is fused of a recording, and whether it is long. Shapes: [S] -> [NUM_VIEWS + 1, num_mels, frames]."""
        frames = self.unit_shape[-1]
        levels = self.decibels(samples if len(samples) > self.num_samples else self.filled(samples))
        longer = levels.shape[1] > frames  # not by less than a hop
        if longer:
            size = (self.num_mels, frames)
            shrunk = F.interpolate(levels[None, None], size, mode="bilinear", align_corners=False)[0, 0]
            thirds = np.array_split(np.arange(levels.shape[1] - frames + 1), 3)
            begins = [third[len(third) // 2] if len(third) else 0 for third in thirds]
            views = torch.stack([shrunk, *(levels[:, begin : begin + frames] for begin in begins)])
        else:
            views = levels.expand(NUM_VIEWS, -1, -1)
        return torch.cat([views, torch.full_like(views[:1], longer)])

    def decibels(self, samples: np.ndarray) -> Tensor:
        """10 log10 of the power in mel bands, -100 at least. Shapes: [S] -> [num_mels, 1 + S // hop_samples] float32."""
        half = self.window_samples // 2  # frames are centred
        padded = F.pad(torch.from_numpy(samples)[None], (half, half), mode="reflect")[0]
        frames = padded.unfold(0, self.window_samples, self.hop_samples)
        window = torch.hann_window(self.window_samples, dtype=torch.float64)
        make = htk_filters if self.fused else slaney_filters
        filters = make(self.num_mels, self.window_samples, self.sample_rate_hz, self.lowest_hz, self.highest_hz).double()
        levels = []
        for block in frames.split(BLOCK_FRAMES):
            # in float64: where a band is all but silent, float32 would be wrong by more than a thousandth of a decibel
            spectrum = torch.fft.rfft(block.double() * window).mT
            levels.append((filters @ spectrum.abs().square()).clamp_min(1e-10).log10().mul(10).float())
        return torch.cat(levels, 1)
