"""Scores for the terminal: a bar while questions are asked, a table of types and baselines afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from weft.evaluation.evaluation import MODEL, RUN_TITLES, Evaluation
from weft.evaluation.statistics import Estimate


class EvaluationProgress:
    """One bar a run; pass it as `progress`. `titles` are the benchmark's names of runs, where it has any."""

    def __init__(self, console: Console, titles: Mapping[str, str] | None = None) -> None:
        self.titles = titles or {}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console)
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.tasks:
            self.progress.stop()

    def __call__(self, run: str, done: int, total: int) -> None:
        """Show that a run has `done` of `total` answers."""
        if not self.tasks:
            self.progress.start()  # not before: a mistake that is found first is told in one line
        if run not in self.tasks:
            self.tasks[run] = self.progress.add_task(run_title(run, self.titles), total=total)
        self.progress.update(self.tasks[run], completed=done)


def score_table(evaluation: Evaluation) -> Table:
    """Each question type with the model's score, its 95% interval, and every baseline."""
    table = Table(title=f"{evaluation.benchmark}: share right, 95% interval", title_justify="left", header_style="bold cyan")
    table.add_column("question type")
    for run in (MODEL, *evaluation.baselines):
        table.add_column(run_title(run, evaluation.titles), justify="right")
    for type in evaluation.types:
        cells = [_cell(evaluation.by_type(type, run), run == MODEL) for run in (MODEL, *evaluation.baselines)]
        table.add_row(evaluation.title(type), *cells)
    table.add_section()
    means = [_cell(evaluation.mean(run), run == MODEL) for run in (MODEL, *evaluation.baselines)]
    table.add_row("mean over types", *means, style="bold")
    return table


def failures(evaluation: Evaluation) -> list[str]:
    """A line for every run in which questions could not be asked."""
    return [
        f"{run_title(run, evaluation.titles)}: {len(failed):,} of {len(evaluation.runs[run]):,} questions could not be asked "
        f"and count as wrong; the first: {failed[0].error}"
        for run in (MODEL, *evaluation.baselines)
        if (failed := evaluation.failed(run))
    ]


def run_title(run: str, titles: Mapping[str, str]) -> str:
    """A run's name for people: the benchmark's own, or the usual one."""
    return titles.get(run) or RUN_TITLES.get(run, run.replace("_", " "))


def _cell(estimate: Estimate | None, interval: bool) -> str:
    if estimate is None:
        return ""
    value = f"{estimate.value:.1%}"
    return f"{value}  [dim]{estimate.low:.1%} to {estimate.high:.1%}[/]" if interval else value
