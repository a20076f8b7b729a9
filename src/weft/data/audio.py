"""From a recording to what an encoder hears: open safely, mono, one rate, clipped or padded; log-mel or the waveform."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from weft.core.errors import ConfigError, DataError
from weft.core.layout import MediaLayout
from weft.data.log_mel import HOP_SAMPLES, SAMPLE_RATE_HZ, WINDOW_SAMPLES, log_mel
from weft.data.media_transform import MediaTransform, OpenedMedium
from weft.data.resampling import resample
from weft.data.wav_file import is_wav, read_wav

FRAME_SAMPLES = 400
"""What HuBERT's convolutions read for one frame: a shorter waveform has no feature."""


MP3_FRAMES = 2 * 1152
"""Samples of two frames: what programs may count otherwise at an MP3 file's ends."""


@dataclass(frozen=True, eq=False)
class Waveform:
    """Samples in memory. Shapes: `samples` [S] or [S, channels] float, full scale at 1. Units: `sample_rate_hz`."""

    samples: np.ndarray
    sample_rate_hz: int


def open_audio(source: Any, name: str | None = None, seconds: float | None = None) -> Waveform:
    """A recording as mono samples [S] float32 from a path, the bytes of a file, or a `Waveform`; at most its first `seconds`.

    Channels are averaged. WAV is read here, other formats by the library `soundfile` where it is installed. `name` is what
    errors call the recording; by default its path or its kind.

    Raises: DataError where it is missing, empty, cut off, no audio, or holds values that are not finite.
    """
    name = name or _name(source)
    samples, rate = _read(source, name, seconds)
    if seconds is not None:
        samples = samples[: int(np.ceil(seconds * rate))]
    if samples.size == 0:
        raise DataError(f"{name} holds no samples")
    mono = samples.mean(-1, dtype=np.float32) if samples.ndim == 2 else samples.astype(np.float32)
    if not np.isfinite(mono).all():
        first = int((~np.isfinite(mono)).argmax())
        raise DataError(f"{name} holds a value that is not finite at {first / rate:.3f} s (sample {first})")
    return Waveform(mono, rate)


def open_clip(source: Any, num_samples: int | None, sample_rate_hz: int) -> np.ndarray:
    """The first samples of a recording at another rate, mono, at most `num_samples` of them (None: all), as `open_audio` reads
    them.

    Raises: DataError, also for a rate that cannot be brought to the one asked for.
    """
    # the filter looks a little beyond the clip
    recording = open_audio(source, seconds=None if num_samples is None else num_samples / sample_rate_hz + 0.1)
    try:
        return resample(recording.samples, recording.sample_rate_hz, sample_rate_hz)[:num_samples]
    except DataError as error:
        raise DataError(f"{_name(source)} {error}") from None


@dataclass(frozen=True, kw_only=True)
class AudioTransform(MediaTransform):
    """How a recording becomes [num_mels, frames] log-mel values: a clip of fixed length, padded with silence.

    Units: `clip_seconds`; a frame is 10 ms. Source: Whisper, arXiv:2212.04356.
    """

    num_mels: int = 80
    clip_seconds: float = 30.0
    sample_rate_hz: ClassVar[int] = SAMPLE_RATE_HZ

    def __post_init__(self) -> None:
        _check_clip(self.clip_seconds, WINDOW_SAMPLES)

    @property
    def unit_shape(self) -> tuple[int, int]:
        return (self.num_mels, round(self.clip_seconds * SAMPLE_RATE_HZ) // HOP_SAMPLES)

    def open(self, source: Any, unit: MediaLayout) -> OpenedMedium:
        whole = np.zeros(self.unit_shape[1] * HOP_SAMPLES, np.float32)
        samples = open_clip(source, len(whole), SAMPLE_RATE_HZ)
        whole[: len(samples)] = samples
        return OpenedMedium(log_mel(torch.from_numpy(whole), self.num_mels).numpy()[None], unit, None)

    def normalise(self, units: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(units))


@dataclass(frozen=True, kw_only=True)
class WaveformTransform(MediaTransform):
    """How a recording becomes samples [S] at 16 kHz: at most `clip_seconds`, padded with zeros once the batch is made.

    The layout says how many samples are real. `standardise`: zero mean and unit variance over the real samples, as HuBERT's
    large models take it (arXiv:2106.07447); its base model takes the samples as they are.
    """

    clip_seconds: float = 10.0
    standardise: bool = False
    sample_rate_hz: ClassVar[int] = SAMPLE_RATE_HZ

    def __post_init__(self) -> None:
        _check_clip(self.clip_seconds, 1)

    @property
    def unit_shape(self) -> tuple[int]:
        return (round(self.clip_seconds * SAMPLE_RATE_HZ),)

    def open(self, source: Any, unit: MediaLayout) -> OpenedMedium:
        (most,) = self.unit_shape
        samples = open_clip(source, most, SAMPLE_RATE_HZ)
        if len(samples) < min(most, FRAME_SAMPLES):
            raise DataError(f"{_name(source)} holds {len(samples)} samples of 16 kHz, of which {FRAME_SAMPLES} make one frame")
        if self.standardise:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        return OpenedMedium(samples[None], replace(unit, num_samples=len(samples)), None)

    def normalise(self, units: Sequence[np.ndarray]) -> Tensor:
        padded = torch.zeros(len(units), *self.unit_shape)
        for row, samples in zip(padded, units, strict=True):
            row[: len(samples)] = torch.from_numpy(samples)
        return padded


def _check_clip(seconds: float, least_samples: int) -> None:
    if seconds * SAMPLE_RATE_HZ < least_samples:
        raise ConfigError(f"clip_seconds={seconds} is too short; it must hold at least {least_samples} samples of 16 kHz")


def _name(source: Any) -> str:
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return f"a recording of {len(source)} bytes"
    return f"a {type(source).__name__}"


def _read(source: Any, name: str, seconds: float | None) -> tuple[np.ndarray, int]:
    """Samples [S] or [S, channels] and their rate; a file that was opened here is closed again, whatever happens."""
    if isinstance(source, Waveform):
        return _checked(source, name)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decoded(io.BytesIO(source), name, seconds)
    if not isinstance(source, str | Path):
        raise DataError(
            f"a recording is a path, bytes or a Waveform, got {name}; an array needs its rate: Waveform(array, rate)"
        )
    path = Path(source)
    if path.is_dir():
        raise DataError(f"{name} is a folder, not an audio file")
    try:
        with path.open("rb") as file:
            return _decoded(file, name, seconds)
    except FileNotFoundError:
        raise DataError(f"no audio file {name}") from None
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}") from None


def _decoded(file: IO[bytes], name: str, seconds: float | None) -> tuple[np.ndarray, int]:
    start = file.read(12)
    if not start:
        raise DataError(f"{name} is an empty file")
    if is_wav(start):
        return read_wav(file, name, seconds)
    if importlib.util.find_spec("soundfile") is None:
        raise DataError(f"{name} is no WAV file; FLAC, OGG and MP3 are read where the library soundfile is installed")
    import soundfile

    file.seek(0)
    try:
        with soundfile.SoundFile(file) as sound:
            wanted = sound.frames if seconds is None else min(sound.frames, int(np.ceil(seconds * sound.samplerate)))
            samples = sound.read(wanted, dtype="float32", always_2d=True)
            if wanted - len(samples) > MP3_FRAMES and (sound.format != "MP3" or _counted(file)):
                raise DataError(f"{name} is cut off: {len(samples)} samples where its header promises {sound.frames}")
            return samples, sound.samplerate
    except soundfile.LibsndfileError as error:
        raise DataError(f"{name} is no audio of a known format: {error.error_string}") from None


def _counted(file: IO[bytes]) -> bool:
    """Whether an MP3 file says how long it is; of another one the library guesses by its first bit rate."""
    file.seek(0)
    start = file.read(4096)
    return b"Xing" in start or b"Info" in start


def _checked(recording: Waveform, name: str) -> tuple[np.ndarray, int]:
    samples, rate = np.asarray(recording.samples), recording.sample_rate_hz
    if samples.ndim not in (1, 2) or not np.issubdtype(samples.dtype, np.floating) or rate < 1:
        raise DataError(
            f"a Waveform is [S] or [S, channels] of floats within -1 and 1 at a rate above 0 Hz, got {name} {samples.shape} "
            f"{samples.dtype} at {rate} Hz"
        )
    return samples, rate
