"""How long a video file is by its own headers: AVI, MP4 and QuickTime, Matroska and WebM."""

from __future__ import annotations

from typing import IO

_BOXES = frozenset(
    (
        b"ftyp",
        b"styp",
        b"pnot",
        b"wide",
        b"free",
        b"skip",
        b"moov",
        b"moof",
        b"mdat",
        b"meta",
        b"sidx",
        b"mfra",
        b"uuid",
        b"udta",
    )
)
_EBML, _SEGMENT = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")


def promised_bytes(file: IO[bytes]) -> int | None:
    """Where the last part that the headers speak of ends; None where they leave it open, as those of a live recording do.

    Units: bytes from the start of the file. What stands behind the last known part, as some cameras append it, is not counted.
    """
    file.seek(0)
    start = file.read(8)
    if start[:4] == b"RIFF":
        return _lists(file)
    if start[4:] in _BOXES:
        return _boxes(file)
    return _segment(file) if start[:4] == _EBML else None


def _lists(file: IO[bytes]) -> int | None:
    """AVI: a list, and behind the first gigabyte another."""
    end = 0
    while (header := _at(file, end, 8))[:4] == b"RIFF":
        size = int.from_bytes(header[4:], "little")
        if len(header) < 8 or size in (0, 0xFFFFFFFF):
            return None
        end += 8 + size + size % 2
    return end


def _boxes(file: IO[bytes]) -> int | None:
    """MP4: boxes in a row; size 1 stands for one of 64 bits behind the name, size 0 for the rest of the file."""
    end = 0
    while (header := _at(file, end, 16))[4:8] in _BOXES:
        size = int.from_bytes(header[8:] if header[:4] == b"\0\0\0\1" else header[:4], "big")
        if size < 8:
            return None
        end += size
    return end


def _segment(file: IO[bytes]) -> int | None:
    """Matroska: a header, then one element that holds all the rest."""
    file.seek(4)
    header = _number(file)
    if header is None:
        return None
    file.seek(header, 1)
    if file.read(4) != _SEGMENT:
        return None
    size = _number(file)
    return None if size is None else file.tell() + size


def _number(file: IO[bytes]) -> int | None:
    """Matroska's numbers: as many bytes as the first one has leading zeros, and one; all ones stand for 'not known'."""
    first = int.from_bytes(file.read(1), "big")
    length = 9 - first.bit_length()
    value = int.from_bytes(bytes((first,)) + file.read(length - 1), "big") & ((1 << 7 * length) - 1)
    return None if length > 8 or value == (1 << 7 * length) - 1 else value


def _at(file: IO[bytes], place: int, length: int) -> bytes:
    file.seek(place)
    return file.read(length)
