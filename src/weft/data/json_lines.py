"""Records of JSON-lines files by index; only their places are kept."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weft.core.errors import DataError

_NAMED = 100  # left-out records whose reason is kept; the others are counted
_FORMS = {
    ".zip": "unpack it first",
    ".gz": "unpack it first",
    ".zst": "unpack it first",
    ".parquet": "write its rows as JSON lines, for instance with the library datasets: Dataset.from_parquet(...).to_json(...)",
    ".tar": "unpack it first",
}


class JsonLines:
    """The records of a JSON-lines file, of those in a folder (`*.jsonl`), or of those that fit a pattern (`docs_*.jsonl`).

    Each record is read and shown to `take` once, which says whether it is one of the data set, or raises DataError where it is
    not sound. That is an error when `strict`; otherwise the line is skipped: `num_skipped` counts, `skipped` names the first.

    Raises: DataError naming file, line (from 1) and reason.
    """

    def __init__(self, path: str, take: Callable[[Any, str], bool], strict: bool) -> None:
        self.files = _files(path)
        self.num_skipped = self.num_left_out = 0
        self.skipped: list[str] = []
        self._places = array("q")  # (file, first byte, length, line) of each record
        for number, file in enumerate(self.files):
            start = 0
            with file.open("rb") as lines:
                for line, written in enumerate(lines, start=1):
                    if written.strip():
                        self._add(number, start, written, line, take, strict)
                    start += len(written)
        if not len(self):
            raise DataError(
                f"{path} holds no usable record; {self.num_skipped} were skipped and {self.num_left_out} left out"
                + (f"; the first: {self.skipped[0]}" if self.skipped else "")
            )

    def _add(self, number: int, start: int, written: bytes, line: int, take: Callable[[Any, str], bool], strict: bool) -> None:
        file = self.files[number]
        try:
            if take(_record(written), _name(file, line)):
                self._places.extend((number, start, len(written), line))
            else:
                self.num_left_out += 1
        except DataError as error:
            problem = f"{file}, line {line}: {error}"
            if strict:
                raise DataError(f"{problem}; mend it, or skip such records (strict=false, --skip-broken)") from None
            self.num_skipped += 1
            if len(self.skipped) < _NAMED:
                self.skipped.append(problem)

    def __len__(self) -> int:
        return len(self._places) // 4

    def __getitem__(self, index: int) -> tuple[Any, str]:
        """Record `index` and its name; IndexError beyond the end, DataError where the file has changed."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        at = 4 * (index % len(self))
        number, start, length, line = self._places[at : at + 4]
        file = self.files[number]
        try:
            with file.open("rb") as lines:
                lines.seek(start)
                return _record(lines.read(length)), _name(file, line)
        except (OSError, DataError):
            raise DataError(f"{file} has changed since it was opened (line {line})") from None

    def remarks(self) -> list[str]:
        """What was skipped and what was left out."""
        remarks = []
        if self.num_skipped:
            remarks.append(f"broken records that were skipped: {self.num_skipped:,}; the first: {self.skipped[0]}")
        if self.num_left_out:
            remarks.append(f"sound records that do not fit and were left out: {self.num_left_out:,} beside {len(self):,}")
        return remarks


def _name(file: Path, line: int) -> str:
    return f"{file.name}:{line}"


def _record(written: bytes) -> Any:
    try:
        return json.loads(written)
    except UnicodeDecodeError:
        raise DataError("it is not UTF-8 text") from None
    except RecursionError:
        raise DataError("it is nested too deeply") from None
    except ValueError as error:
        raise DataError(f"it is not JSON: {error}") from None


def _files(path: str) -> list[Path]:
    place = Path(path)
    if place.is_dir():
        found, wanted = sorted(place.glob("*.jsonl")), "a *.jsonl file in it"
    elif place.is_file():
        found, wanted = [place], ""
    else:
        found, wanted = sorted(file for file in place.parent.glob(place.name) if file.is_file()), "a file that fits it"
    if not found:
        raise DataError(f"no data at {path}: expected a JSON-lines file there, or {wanted}")
    for file in found:
        if file.suffix in _FORMS:
            raise DataError(f"{file} is {file.suffix.removeprefix('.')}, not JSON lines; {_FORMS[file.suffix]}")
    return found
