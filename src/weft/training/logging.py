"""What a run writes about itself: metrics.jsonl, log.txt, TensorBoard."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from weft.core.errors import RunError
from weft.training.atomic import refusal, write_text_atomically

METRICS = "metrics.jsonl"
TEXT = "log.txt"
BOARD = "tensorboard"


class Log(Protocol):
    """Where a run's figures and lines go."""

    def metrics(self, record: Mapping[str, Any]) -> None: ...

    def text(self, line: str) -> None: ...

    def own(self, line: str) -> None:
        """A line of text about what only this process has met."""


class SilentLog:
    """For the processes that train along: the first one writes for all, but what only this one has met."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / TEXT

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Nothing."""

    def text(self, line: str) -> None:
        """Nothing."""

    def own(self, line: str) -> None:
        """One line of the first one's log.txt."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_dated(line))  # one write: lines of several processes stay whole
        except OSError as error:
            raise RunError(refusal(self.path, error)) from error


class RunLog:
    """Appends to a run folder's logs; TensorBoard joins where it is asked for and installed; log.txt says if it is not."""

    def __init__(self, folder: Path, tensorboard: bool = False) -> None:
        self.folder = folder
        self._lock = Lock()
        try:
            self._metrics = (folder / METRICS).open("a", encoding="utf-8")
            self._text = (folder / TEXT).open("a", encoding="utf-8")
        except OSError as error:
            raise RunError(refusal(folder / METRICS, error)) from error
        self._board = _open_tensorboard(folder / BOARD) if tensorboard else None
        if tensorboard and self._board is None:
            self.text("tensorboard is not installed, so no events are written; pip install 'weft[train]'")

    def metrics(self, record: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl, and the figures in it to TensorBoard."""
        self._write(self._metrics, json.dumps(record) + "\n")
        if self._board is not None:
            for name in ("loss", "rate", "tokens_per_second", "samples_per_second", "gradient_norm"):
                if record.get(name) is not None:
                    self._board.add_scalar(f"{record['stage']}/{record['kind']}/{name}", record[name], record["step"])

    def text(self, line: str) -> None:
        """One line of log.txt with the time."""
        self._write(self._text, _dated(line))

    def own(self, line: str) -> None:
        """The same: this is the process that writes."""
        self.text(line)

    def close(self) -> None:
        for file in (self._metrics, self._text, self._board):
            if file is not None:
                with suppress(OSError):  # every line was flushed; what a full disk refused was told then
                    file.close()

    def _write(self, file: Any, line: str) -> None:
        try:
            with self._lock:  # the thread that prepares data writes as well
                file.write(line)
                file.flush()
        except OSError as error:
            raise RunError(refusal(Path(file.name), error)) from error


def _dated(line: str) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n"


def _open_tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder)


def read_metrics(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The records of a run; a last line that a kill cut short is left out."""
    path = Path(folder) / METRICS
    records: list[dict[str, Any]] = []
    if not path.exists():
        return records
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [r for r in records if kind is None or r["kind"] == kind]


def stage_seconds(folder: Path) -> dict[str, float]:
    """What each stage of a run took, over resumes: the time of the steps that were kept, with validations and checkpoints.

    The clock of every session begins at zero, so where it falls back another session began.
    """
    told: dict[str, float] = {}
    took: dict[str, float] = {}
    for record in read_metrics(folder):
        stage, now, before = record["stage"], record["seconds"], told.get(record["stage"], 0.0)
        took[stage] = took.get(stage, 0.0) + (now - before if now >= before else now)
        told[stage] = now
    return took


def rewind_metrics(folder: Path, keep: Callable[[Mapping[str, Any]], bool]) -> None:
    """Drop the records of steps that a resumed run will take again."""
    lines = [json.dumps(r) for r in read_metrics(folder) if keep(r)]
    write_text_atomically(Path(folder) / METRICS, "".join(line + "\n" for line in lines))
