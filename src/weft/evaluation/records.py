"""What was asked and answered, one line a question: written as it happens, so that an evaluation can be resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weft.core.errors import DataError, RunError

FORMAT = 1


@dataclass(frozen=True)
class Record:
    """One question with its answer and mark. Units: `score` 0 to 1, `seconds` of generation for this answer.

    `error` says why a question could not be asked: a medium that cannot be read. It counts as answered wrong.
    """

    id: str
    type: str
    group: str
    question: str
    truth: str
    reply: str
    score: float
    seconds: float = 0.0
    error: str = ""


class RecordFile:
    """Records of one run as JSON lines behind a header that says what was asked of whom.

    A line is written whole or, where a process died in the middle of it, dropped when the file is opened again. Of a question
    that was asked again the last line counts.

    Raises: RunError where the file holds answers to something else; DataError where a line within it is damaged.
    """

    def __init__(self, path: str | Path, key: dict[str, Any]) -> None:
        self.path = Path(path)
        self.key = key
        self.records: dict[str, Record] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._drop_torn_line()
        if self.path.exists() and self.path.stat().st_size:
            header, records = _parse(self.path)
            if header != key:
                changed = sorted(k for k in {*header, *key} if header.get(k) != key.get(k))
                raise RunError(
                    f"{self.path} holds the answers of another evaluation (different: {', '.join(changed)}); "
                    "give another folder or delete the file"
                )
            self.records = {record.id: record for record in records}
        else:
            self._write([{"records": FORMAT, **key}])

    def append(self, records: Sequence[Record]) -> None:
        """Write records to disk; on return they survive a crash of the machine."""
        self._write([asdict(record) for record in records])
        self.records.update((record.id, record) for record in records)

    def _write(self, lines: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        try:
            with self.path.open("ab") as file:
                file.write(text.encode("utf-8", errors="backslashreplace"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            reason = error.strerror or error
            raise RunError(
                f"{self.path} could not be written ({reason}); the answers in it stand, mend it and go on"
            ) from error

    def _drop_torn_line(self) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with self.path.open("r+b") as file:
                file.truncate(whole)


def read_records(path: str | Path) -> tuple[Record, ...]:
    """The records of a file, without its header."""
    return _parse(Path(path))[1]


def _parse(path: Path) -> tuple[dict[str, Any], tuple[Record, ...]]:
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    header: dict[str, Any] = {}
    records: dict[str, Record] = {}
    for number, line in enumerate(lines, start=1):
        try:
            fields = json.loads(line)
            if number == 1:
                header = fields
            else:
                record = Record(**fields)
                records[record.id] = record
        except (json.JSONDecodeError, TypeError) as error:
            raise DataError(f"{path}, line {number}: not a record ({error}); delete the file to answer anew") from None
    if header.pop("records", None) != FORMAT:
        raise DataError(f"{path}: the first line is no header of records in format {FORMAT}; delete the file to answer anew")
    return header, tuple(records.values())
