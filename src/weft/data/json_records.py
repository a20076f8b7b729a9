"""The records of a JSON list or of JSON lines, one at a time, with their places in the file."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from weft.core.errors import DataError

_CHUNK = 1 << 20
_LARGEST = 1 << 26
"""Characters; a longer record is taken for a broken one."""


def json_records(path: Path) -> Iterator[tuple[Any, int, int]]:
    """(record, first byte, length in bytes) of every record; the file is never held as a whole.

    Raises: DataError naming the file, the record (from 0) and the reason.
    """
    if not path.is_file():
        raise DataError(f"no data file {path}" if not path.exists() else f"{path} is a folder, not a JSON file")
    with path.open("rb") as file:
        text = _Text(file, path)
        listed = text.skip(" \t\r\n\ufeff") == "["
        if not listed and text.peek() not in ("{", ""):
            raise DataError(f"{path} is no JSON list of records and no JSON lines: it begins with {text.peek()!r}")
        if listed:
            text.advance(1)
        number = 0
        while True:
            after = text.skip(" \t\r\n")
            if listed and after == "]":
                break
            if not after:
                if listed:
                    raise DataError(f"{path} is not JSON: the list is not closed after record {number - 1}; was it cut off?")
                break
            if listed and number:
                if after != ",":
                    raise DataError(f"{path} is not JSON: no comma after record {number - 1}")
                text.advance(1)
                text.skip(" \t\r\n")
            start = text.byte
            yield text.record(number), start, text.byte - start
            number += 1


class _Text:
    """A window on a UTF-8 file that knows the byte at which it stands."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.buffer, self.at, self.byte = "", 0, 0
        self.ended = False

    def peek(self) -> str:
        """The next character, "" at the end."""
        while self.at >= len(self.buffer) and not self.ended:
            self._more(_CHUNK)
        return self.buffer[self.at : self.at + 1]

    def advance(self, characters: int) -> None:
        self.byte += len(self.buffer[self.at : self.at + characters].encode())
        self.at += characters

    def skip(self, characters: str) -> str:
        """Go past any of these characters; returns the one that stands there then."""
        while self.peek() and self.peek() in characters:
            self.advance(1)
        return self.peek()

    def record(self, number: int) -> Any:
        """Read one value."""
        size = _CHUNK
        while True:
            try:
                value, end = _DECODER.raw_decode(self.buffer, self.at)
            except json.JSONDecodeError as error:
                if self.ended or len(self.buffer) - self.at > _LARGEST:
                    raise DataError(f"{self.path} is not JSON: record {number}: {error.msg}") from None
                self._more(size)
                size *= 2
            except RecursionError:
                raise DataError(f"{self.path} is not JSON: record {number} is nested too deeply") from None
            else:
                self.advance(end - self.at)
                return value

    def _more(self, size: int) -> None:
        read = self.file.read(size)
        self.ended = not read
        try:
            self.buffer = self.buffer[self.at :] + self.decoder.decode(read, final=self.ended)
        except UnicodeDecodeError:
            raise DataError(f"{self.path} is not UTF-8 text") from None
        self.at = 0


_DECODER = json.JSONDecoder()
