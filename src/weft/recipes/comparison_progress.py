"""How far a comparison is: the row and its step, the rate, and the time that is left of the whole."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from weft.evaluation.evaluation import BLIND, MODEL
from weft.recipes.comparison_plan import STREAM, picture_tokens
from weft.recipes.comparison_row import Row
from weft.systems.multimodal_lm import MultimodalSystem
from weft.training.progress import clock

if TYPE_CHECKING:
    from rich.console import Console

    from weft.training.progress import StageEnd, StageStart, StepReport
    from weft.training.stage import Stage

_LINE_SECONDS = 10.0
_TRUSTED_SECONDS = 20.0  # of expected work, before the measured pace replaces the expected one

# Seconds on two CPU cores with bf16 instructions; the pace of the machine at hand replaces them after a while.
_CONTRASTIVE_STEP = 0.3
_TEXT_STEP = 0.06
_SEEING_STEP, _TOKEN = 0.11, 0.0022
_QUESTION = 0.02


def expected_seconds(stage: Stage) -> float:
    """What a stage of the desk takes before anything is measured; a step grows with the tokens of a picture."""
    assert stage.steps is not None
    system = stage.system
    if not isinstance(system, MultimodalSystem.Config):
        return stage.steps * _CONTRASTIVE_STEP
    tokens = picture_tokens(system, stage.processor.transforms[STREAM]) if system.streams else 0
    return stage.steps * (_SEEING_STEP + _TOKEN * tokens if tokens else _TEXT_STEP)


def expected_evaluation_seconds(num_questions: int) -> float:
    """All questions with their pictures and with shuffled ones."""
    return 2 * num_questions * _QUESTION


class ComparisonProgress:
    """Two bars on a terminal, a line now and then elsewhere; the trainer's callback and the evaluation's progress.

    `pieces` are the stages that each piece of work trains: the shared ones, then those of every row.
    """

    def __init__(self, console: Console, pieces: Sequence[Sequence[Stage]], num_questions: int) -> None:
        self.console = console
        self.evaluation = expected_evaluation_seconds(num_questions)
        self.pieces = [
            sum(map(expected_seconds, stages)) + (self.evaluation if number else 0.0) for number, stages in enumerate(pieces)
        ]
        self.number = -1
        self.label = ""
        self._stages: Sequence[Stage] = ()
        self._done = 0.0  # of the running piece, in expected seconds
        self._worked = 0.0  # in this session, in expected seconds
        self._step = self._first = 0
        self._asked: dict[str, int] = {}
        self._began = time.monotonic()
        self._told = 0.0
        self._bars = _Bars(console) if console.is_terminal else None

    @property
    def expected(self) -> float:
        """The whole, in seconds."""
        return sum(self.pieces)

    @property
    def seconds_left(self) -> float:
        """Of the whole, at the pace of this session."""
        pace = (time.monotonic() - self._began) / self._worked if self._worked > _TRUSTED_SECONDS else 1.0
        return pace * (sum(self.pieces[self.number :]) - self._done)

    def __enter__(self) -> Self:
        self._began = self._told = time.monotonic()
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()

    def begin(self, label: str, stages: Sequence[Stage]) -> None:
        """The next piece of work."""
        self.number += 1
        self.label, self._stages, self._done, self._asked = label, stages, 0.0, {}

    def end(self, row: Row | None = None) -> None:
        """The piece is finished, now or in an earlier session; a row says what it found."""
        if row is not None:
            self._say(f"{self._place}: {_found(row)}")

    def on_stage_start(self, start: StageStart) -> None:
        self._step = self._first = start.first_step
        names = [stage.name for stage in self._stages]
        self._done = sum(map(expected_seconds, self._stages[: names.index(start.name)]))
        self._done += self._seconds_a_step(start.name) * start.first_step

    def on_step(self, report: StepReport) -> None:
        if report.kind != "train":
            return
        self._move(self._seconds_a_step(report.stage) * (report.step - self._step))
        self._step = report.step
        rate = (report.step - self._first) / report.seconds if report.seconds > 0 else 0.0
        self._tell(report.stage, report.step, report.steps, f"{rate:.1f} steps/s, loss {report.loss:.3f}")

    def on_stage_end(self, end: StageEnd) -> None:
        """The steps have told it."""

    def asked(self, run: str, done: int, total: int) -> None:
        """The evaluation's progress: `done` of the `total` answers of a run."""
        new = done - self._asked.get(run, 0)
        self._asked[run] = done
        if run in (MODEL, BLIND):  # the text-only model is asked once for all rows
            self._move(self.evaluation / 2 * new / total)
        self._tell(f"questions ({run})", done, total, "")

    def _seconds_a_step(self, name: str) -> float:
        stage = next(stage for stage in self._stages if stage.name == name)
        assert stage.steps is not None
        return expected_seconds(stage) / stage.steps

    def _move(self, seconds: float) -> None:
        self._done += seconds
        self._worked += seconds

    @property
    def _place(self) -> str:
        return f"{self.number}/{len(self.pieces) - 1} {self.label}" if self.number else self.label

    def _tell(self, what: str, done: int, total: int, figures: str) -> None:
        now = time.monotonic()
        if self._bars is not None:
            share = 1 - (sum(self.pieces[self.number :]) - self._done) / self.expected
            whole = (self._place, share, f"{clock(self.seconds_left)} left")
            self._bars.show(whole, (what, done / total, f"{done}/{total} {figures}"))
        elif now - self._told >= _LINE_SECONDS:
            self._told = now
            told = f" {figures}" if figures else ""
            self._say(f"{self._place}: {what} {done}/{total}{told}, {clock(self.seconds_left)} left of the whole")

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


class _Bars:
    """The whole above, what runs below."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (TextColumn("{task.description:<26}"), BarColumn(20), TextColumn("{task.fields[told]}"))
        self.progress = Progress(*columns, console=console)
        self.tasks = [self.progress.add_task("", total=1.0, told="") for _ in range(2)]

    def start(self) -> None:
        self.progress.start()

    def stop(self) -> None:
        self.progress.stop()

    def show(self, *bars: tuple[str, float, str]) -> None:
        for task, (description, share, told) in zip(self.tasks, bars, strict=True):
            self.progress.update(task, description=description, completed=share, told=told)


def _found(row: Row) -> str:
    figures = f"{row.accuracy.value:.1%} right, {row.shuffled.value:.1%} with shuffled pictures"
    return figures if row.learned else f"{figures}; not learned: {row.reason}"
