"""What a run tells while it goes: the callback protocol, a live view for terminals and plain lines for everything else."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console, RenderableType
    from rich.live import Live

_BARS = "▁▂▃▄▅▆▇█"
_WIDE = 120  # columns of a terminal that shows every figure


@dataclass(frozen=True)
class StageStart:
    """A stage begins, or goes on after a resume at `first_step`."""

    name: str
    title: str
    index: int
    num_stages: int
    steps: int
    first_step: int
    trained_parameters: int
    all_parameters: int


@dataclass(frozen=True)
class StepReport:
    """After an optimizer step, or after a validation; `step` counts the steps taken.

    Units: rates per second over the last steps; `tokens_per_second` counts real tokens; `data_wait` is the share of the time
    that the step waited for data; `seconds` since the stage (or its resume) began.
    """

    kind: Literal["train", "validation"]
    stage: str
    step: int
    steps: int
    loss: float
    terms: dict[str, float]
    rate: float = 0.0
    gradient_norm: float = 0.0
    samples_per_second: float = 0.0
    tokens_per_second: float = 0.0
    data_wait: float = 0.0
    seconds: float = 0.0
    seconds_left: float = 0.0


@dataclass(frozen=True)
class StageEnd:
    """A stage is finished; its model folder stands at `folder`."""

    name: str
    seconds: float
    folder: Path
    loss: float | None = None
    validation_loss: float | None = None


class TrainingCallback(Protocol):
    """What the trainer tells; evaluation during training and live views are callbacks."""

    def on_stage_start(self, start: StageStart) -> None: ...

    def on_step(self, report: StepReport) -> None: ...

    def on_stage_end(self, end: StageEnd) -> None: ...


class PlainLines:
    """One line now and then through `write`: for logs, pipes and notebooks."""

    def __init__(self, write: Callable[[str], None], every_seconds: float = 10.0) -> None:
        self.write = write
        self.every_seconds = every_seconds
        self._last = 0.0

    def on_stage_start(self, start: StageStart) -> None:
        share = f"{start.trained_parameters:,} of {start.all_parameters:,} parameters train"
        place = f", from step {start.first_step}" if start.first_step else ""
        self.write(f"[{start.index + 1}/{start.num_stages}] {start.name}: {start.title or start.steps} ({share}{place})")
        self._last = time.monotonic()

    def on_step(self, report: StepReport) -> None:
        now = time.monotonic()
        if report.kind == "validation":
            self.write(f"  {report.stage} step {report.step}/{report.steps} validation loss {report.loss:.4f}")
        elif now - self._last >= self.every_seconds or report.step == report.steps:
            self._last = now
            self.write(f"  {report.stage} {describe(report)}")

    def on_stage_end(self, end: StageEnd) -> None:
        self.write(f"  {end.name} finished in {clock(end.seconds)}: {end.folder}")


@dataclass
class _StageRow:
    start: StageStart
    report: StepReport | None = None
    validation: float | None = None
    end: StageEnd | None = None
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=2048))


class LiveView:
    """A table that redraws itself: each stage with its progress, loss curve, speed and time left."""

    def __init__(self, console: Console, redraws_per_second: float = 4.0) -> None:
        self.console = console
        self.interval = 1.0 / redraws_per_second
        self.rows: list[_StageRow] = []
        self._live: Live | None = None
        self._drawn = 0.0

    def on_stage_start(self, start: StageStart) -> None:
        from rich.live import Live

        self.rows.append(_StageRow(start))
        if self._live is None:
            self._live = Live(self.render(), console=self.console, auto_refresh=False)
            self._live.start()
        self._draw()

    def on_step(self, report: StepReport) -> None:
        row = self.rows[-1]
        if report.kind == "validation":
            row.validation = report.loss
        else:
            row.report = report
            row.losses.append(report.loss)
        if time.monotonic() - self._drawn >= self.interval:
            self._draw()

    def on_stage_end(self, end: StageEnd) -> None:
        self.rows[-1].end = end
        self._draw()
        if self.rows[-1].start.index + 1 == self.rows[-1].start.num_stages:
            self.close()

    def close(self) -> None:
        """Leave the last drawing and give the terminal back; the trainer calls it however a run ends."""
        if self._live is not None:
            self._draw()
            self._live.stop()
            self._live = None

    def render(self) -> RenderableType:
        """The view as it stands: a row for each stage, then how far the running one is and what it is for."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        wide = self.console.width >= _WIDE
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("stage", no_wrap=True)
        for title in ("step", "loss"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("curve", no_wrap=True, style="cyan")
        for title in ("validation", "samples/s", "tokens/s", "data wait") if wide else ("valid.", "tokens/s", "wait"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("time", justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(*_cells(row, wide))
        if not self.rows or self.rows[-1].end:
            return table
        running = self.rows[-1]
        done = running.report.step if running.report else running.start.first_step
        line = Table.grid(padding=(0, 2))
        line.add_row(
            ProgressBar(running.start.steps, done, width=20), Text(running.start.title, style="dim", overflow="ellipsis")
        )
        return Group(table, line)

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        if self._live is not None:
            self._live.update(self.render(), refresh=True)


def _cells(row: _StageRow, wide: bool) -> list[str]:
    start, report = row.start, row.report
    mark = "[green]✓[/]" if row.end else "[cyan]●[/]"
    name = f"{mark} {start.index + 1}/{start.num_stages} [bold]{start.name}[/]"
    if report is None:
        return [name, f"{start.first_step}/{start.steps}", *[""] * (7 if wide else 6)]
    curve = sparkline(list(row.losses), 24 if wide else 8)
    validation = "" if row.validation is None else f"{row.validation:.4f}"
    time = clock(row.end.seconds) if row.end else f"{clock(report.seconds_left)} left"
    speed = [f"{report.tokens_per_second:,.0f}", f"{report.data_wait:.0%}"]
    if wide:
        speed.insert(0, f"{report.samples_per_second:,.0f}")
    return [name, f"{report.step}/{report.steps}", f"{report.loss:.4f}", curve, validation, *speed, time]


def progress_view(console: Console) -> LiveView | PlainLines:
    """The live view on a terminal, plain lines elsewhere."""
    if console.is_terminal:
        return LiveView(console)
    return PlainLines(lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True))


def describe(report: StepReport) -> str:
    """A step in one line."""
    return (
        f"step {report.step}/{report.steps} loss {report.loss:.4f} rate {report.rate:.2e} "
        f"{report.samples_per_second:,.0f} samples/s {report.tokens_per_second:,.0f} tokens/s "
        f"data wait {report.data_wait:.0%} left {clock(report.seconds_left)}"
    )


def sparkline(values: list[float], width: int = 24) -> str:
    """A curve of `width` characters: the mean of equal stretches, the largest drawn highest."""
    if not values:
        return ""
    width = min(width, len(values))
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((m - low) * scale)] for m in means)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
