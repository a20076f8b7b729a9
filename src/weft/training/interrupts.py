"""Ctrl-C: once, finish the step and keep the work; twice, stop at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

EXIT_CODE = 130


class TrainingInterrupted(SystemExit):
    """The user stopped the run; the work up to the last whole step is in a checkpoint. Uncaught, the process exits with 130."""

    def __init__(self, message: str) -> None:
        super().__init__(EXIT_CODE)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Interrupts:
    """While the block runs, the first Ctrl-C sets `requested` and the second leaves at once.

    Leaving is an exception, so that files being written are taken back and the terminal is restored. Outside the main thread,
    where Python delivers no signals, this does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise TrainingInterrupted("stopped at once; the last checkpoint stands")
        self.requested = True
