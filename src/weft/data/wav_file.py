"""Reading WAV files: PCM of 8, 16, 24 and 32 bits, and floating point."""

from __future__ import annotations

import struct
from typing import IO, NamedTuple

import numpy as np

from weft.core.errors import DataError

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_UNKNOWN_SIZE = 0xFFFFFFFF  # what a program that writes to a pipe puts where the size belongs
_KINDS = {(_PCM, 8): "<u1", (_PCM, 16): "<i2", (_PCM, 24): "<u1", (_PCM, 32): "<i4", (_FLOAT, 32): "<f4", (_FLOAT, 64): "<f8"}


class WavFormat(NamedTuple):
    """What the `fmt ` chunk says. Units: `frame_bytes` of one sample of every channel."""

    encoding: int
    num_channels: int
    sample_rate_hz: int
    frame_bytes: int
    bits: int


def is_wav(start: bytes) -> bool:
    """Whether a file that begins so is a WAV file."""
    return start[:4] in (b"RIFF", b"RF64") and start[8:12] == b"WAVE"


def read_wav(file: IO[bytes], name: str, seconds: float | None = None) -> tuple[np.ndarray, int]:
    """The samples [frames, channels] float32 within -1 and 1, at most the first `seconds`, and the sampling rate in Hz.

    Raises: DataError that names the file where it is cut off, damaged, or of an encoding that is not read.
    """
    file.seek(12)
    known: WavFormat | None = None
    while len(header := file.read(8)) == 8:
        kind, size = header[:4], int.from_bytes(header[4:], "little")
        if kind == b"data":
            if known is None:
                raise DataError(f"{name} is a damaged WAV file: its samples come before their format")
            return _samples(file, size, known, name, seconds), known.sample_rate_hz
        if kind == b"fmt ":
            known = _format(file.read(size), name)
            file.seek(size % 2, 1)
        else:
            file.seek(size + size % 2, 1)  # chunks begin at even places
    raise DataError(f"{name} is cut off: a WAV file without samples")


def _format(chunk: bytes, name: str) -> WavFormat:
    if len(chunk) < 16:
        raise DataError(f"{name} is cut off inside its format, {len(chunk)} bytes of 16")
    encoding, channels, rate, _, frame_bytes, bits = struct.unpack("<HHIIHH", chunk[:16])
    if encoding == _EXTENSIBLE and len(chunk) >= 26:
        encoding = int.from_bytes(chunk[24:26], "little")
    if (encoding, bits) not in _KINDS:
        raise DataError(
            f"{name} is WAV of encoding {encoding} with {bits} bits; read are PCM of 8, 16, 24, 32 bits and floats of 32, 64"
        )
    if channels == 0 or rate == 0 or frame_bytes != channels * bits // 8:
        raise DataError(
            f"{name} is a damaged WAV file: {channels} channels of {bits} bits in frames of {frame_bytes} bytes at {rate} Hz"
        )
    return WavFormat(encoding, channels, rate, frame_bytes, bits)


def _samples(file: IO[bytes], size: int, known: WavFormat, name: str, seconds: float | None) -> np.ndarray:
    wanted = size if size != _UNKNOWN_SIZE else None
    if seconds is not None:
        most = int(np.ceil(seconds * known.sample_rate_hz)) * known.frame_bytes
        wanted = most if wanted is None else min(wanted, most)
    raw = file.read(-1 if wanted is None else wanted)
    if wanted is not None and size != _UNKNOWN_SIZE and len(raw) < wanted:
        raise DataError(f"{name} is cut off: {len(raw)} bytes of samples where its header promises {size}")
    raw = raw[: len(raw) // known.frame_bytes * known.frame_bytes]
    return _as_float(raw, known).reshape(-1, known.num_channels)


def _as_float(raw: bytes, known: WavFormat) -> np.ndarray:
    """Every encoding to float32, full scale at 1."""
    values = np.frombuffer(raw, _KINDS[known.encoding, known.bits])
    if known.encoding == _FLOAT:
        return values.astype(np.float32)
    if known.bits == 8:  # the only one without a sign
        return (values.astype(np.float32) - 128) / 128
    if known.bits == 24:
        wide = np.zeros((len(values) // 3, 4), np.uint8)
        wide[:, 1:] = values.reshape(-1, 3)  # as the upper bytes of 32 bits, so the sign stands where it belongs
        return (wide.view("<i4")[:, 0] / 2.0**31).astype(np.float32)
    return (values / 2.0 ** (known.bits - 1)).astype(np.float32)
