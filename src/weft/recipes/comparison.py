"""`weft compare`: parts of one kind, or whole systems, each trained from the same towers on the desk and asked the same."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch

from weft.recipes.comparison_plan import Plan
from weft.recipes.comparison_process import in_own_process
from weft.recipes.comparison_progress import ComparisonProgress
from weft.recipes.comparison_row import Row
from weft.recipes.comparison_table import NAME, Comparison
from weft.recipes.comparison_work import ComparisonWork
from weft.recipes.conditions import Conditions
from weft.training.atomic import write_text_atomically
from weft.training.interrupts import TrainingInterrupted


def compare(
    plan: Plan,
    folder: Path,
    progress: ComparisonProgress,
    device: torch.device | str = "cpu",
    checkpoint_seconds: float = 120.0,
    own_processes: bool = False,
) -> Comparison:
    """Train and measure what is not there yet, and write the table and the plot after every row.

    With `own_processes` each row is trained in a new process, so that the memory that the CPU's allocator kept from one row is
    not counted as the next one's; a script that asks for it needs the usual `if __name__ == "__main__":`.

    Raises: RunError for a folder that holds another comparison, or a full disk; TrainingInterrupted after Ctrl-C, with the
    work kept.
    """
    where = torch.device(device)
    work = ComparisonWork(plan, Path(folder), where, checkpoint_seconds, Conditions.here(where))
    try:
        with progress:
            return _rows(work, progress, own_processes)
    except TrainingInterrupted as stop:
        raise TrainingInterrupted(f"{stop}; the same command goes on") from None


def _rows(work: ComparisonWork, progress: ComparisonProgress, own_processes: bool) -> Comparison:
    plan = work.plan
    progress.begin("shared stages", plan.shared_stages)
    work.train_shared(progress)
    progress.end()
    done: list[Row] = []
    for candidate, seed in plan.rows:
        progress.begin(f"{candidate.name}, seed {seed}", plan.own_stages(candidate))
        row = work.finished(candidate, seed)
        if row is None:
            train = partial(work.row, candidate, seed)
            row = in_own_process(train, progress) if own_processes else train(progress)
        done.append(row)
        progress.end(row)
        comparison = Comparison(plan.room, plan.budget, plan.questions_per_type, done, plan.left_out, plan.command)
        _write(comparison, work.folder)
    return comparison


def _write(comparison: Comparison, folder: Path) -> None:
    """Write `comparison.md`, `comparison.json`, `comparison.svg` and `comparison.png`."""
    from weft.recipes.comparison_plot import comparison_plot, standalone_svg

    write_text_atomically(folder / f"{NAME}.md", comparison.markdown())
    write_text_atomically(folder / f"{NAME}.json", json.dumps(comparison.as_json(), indent=2) + "\n")
    drawing = comparison_plot(comparison)
    write_text_atomically(folder / f"{NAME}.svg", standalone_svg(drawing))
    drawing.png(folder / f"{NAME}.png")
