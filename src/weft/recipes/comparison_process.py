"""A row of a comparison in a process of its own: its peak of memory is then its own, whatever was trained before it."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from weft.core.errors import RunError
from weft.training.interrupts import TrainingInterrupted
from weft.training.progress import TrainingCallback

if TYPE_CHECKING:
    from weft.training.progress import StageEnd, StageStart, StepReport

Result = TypeVar("Result")
_PATIENCE = 10.0  # seconds for a process to end by itself after its last word


class RowProgress(TrainingCallback, Protocol):
    """What training and evaluation tell of a row."""

    def asked(self, run: str, done: int, total: int) -> None: ...


def in_own_process(work: Callable[[RowProgress], Result], progress: RowProgress) -> Result:
    """What `work` returns from a new process, which tells `progress` here; `work` and its result must be such as can be sent.

    Ctrl-C reaches the process as it would reach this one: once to finish the step, twice to leave at once.

    Raises: what `work` raises; RunError where the process ended without a word.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs, work))
    interrupts = _Interrupts()
    with interrupts:
        # What is ignored here while it starts is ignored there: it asks for the signals when it can take them.
        process.start()
        theirs.close()
        interrupts.listen()
        try:
            return _parent(ours, process, interrupts, progress)
        finally:
            ours.close()
            process.join(_PATIENCE)
            process.kill()
            process.join()


def _parent(connection: Connection, process: Any, interrupts: _Interrupts, progress: RowProgress) -> Any:
    while True:
        try:
            kind, told = connection.recv()
        except EOFError:
            process.join()
            raise RunError(f"the row's process ended by itself ({process.exitcode}); the same command goes on") from None
        match kind:
            case "ready":
                interrupts.forward_to(process.pid)
            case "done":
                return told
            case "raised":
                raise told
            case "interrupted":
                raise TrainingInterrupted(told)
            case "stopped":
                raise KeyboardInterrupt
            case _:
                getattr(progress, kind)(*told)
                connection.send(None)


class _Interrupts:
    """Passes Ctrl-C on, also what came before the process could take it; ignores it until it listens.

    Outside the main thread, where Python delivers no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.main = threading.current_thread() is threading.main_thread()
        self.before: Any = None
        self.waiting = 0
        self.pid: int | None = None

    def __enter__(self) -> None:
        self.before = signal.signal(signal.SIGINT, signal.SIG_IGN) if self.main else None

    def __exit__(self, *error: object) -> None:
        if self.main:
            signal.signal(signal.SIGINT, self.before)

    def listen(self) -> None:
        if self.main:
            signal.signal(signal.SIGINT, self._on_signal)

    def forward_to(self, pid: int) -> None:
        self.pid = pid
        for _ in range(self.waiting):
            os.kill(pid, signal.SIGINT)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.pid is None:
            self.waiting += 1
            return
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGINT)


def _child(connection: Connection, work: Callable[[RowProgress], Any]) -> None:
    os.setpgrp()  # a terminal's Ctrl-C comes from the parent alone, and so once
    answer: tuple[str, Any]
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        connection.send(("ready", None))
        answer = ("done", work(_Relay(connection)))
    except TrainingInterrupted as stop:
        answer = ("interrupted", stop.message)
    except KeyboardInterrupt:
        answer = ("stopped", None)
    except Exception as error:
        answer = ("raised", _carried(error))
    with suppress(BrokenPipeError):  # the parent is gone; the work is in its checkpoint
        connection.send(answer)


def _carried(error: Exception) -> Exception:
    """An error with its traceback, in a form that can be sent and made again over there; else its words."""
    try:
        ForkingPickler.dumps(error)
        copy.copy(error)  # some cannot be made again from what they say of themselves
    except Exception:
        error = RunError(str(error))
    error.add_note(traceback.format_exc())
    return error


class _Relay:
    """Tells the parent, and goes on when it has heard: a Ctrl-C at a step arrives before the next."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def on_stage_start(self, start: StageStart) -> None:
        self._tell("on_stage_start", start)

    def on_step(self, report: StepReport) -> None:
        self._tell("on_step", report)

    def on_stage_end(self, end: StageEnd) -> None:
        self._tell("on_stage_end", end)

    def asked(self, run: str, done: int, total: int) -> None:
        self._tell("asked", run, done, total)

    def _tell(self, what: str, *told: object) -> None:
        self.connection.send((what, told))
        self.connection.recv()
