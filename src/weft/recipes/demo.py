"""`weft demo`: from nothing to a measured model that talks about pictures, in one run folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from weft.core.errors import RunError
from weft.evaluation.benchmarks.desk import DeskBenchmark
from weft.evaluation.evaluation import BLIND, MODEL, MOST_FREQUENT, RUN_TITLES, TEXT_ONLY, Evaluation
from weft.evaluation.report.write import write_report
from weft.evaluation.runner import EvaluationSettings, evaluate
from weft.recipes.demo_report import Circumstances, report_content
from weft.recipes.desk import BASELINE, desk, tokenizer
from weft.recipes.loading import load_model
from weft.training.logging import stage_seconds
from weft.training.progress import progress_view
from weft.training.run_folder import RUN
from weft.training.trainer import Trainer

if TYPE_CHECKING:
    from rich.console import Console


QUESTIONS_PER_TYPE = 100


def run_demo(
    folder: Path,
    minutes: float,
    seed: int,
    console: Console,
    questions_per_type: int = QUESTIONS_PER_TYPE,
    processes: int = 1,
) -> Evaluation:
    """Train the desk recipe, measure it on held-out handwriting beside its baselines, and write the report.

    A folder that holds the same run already is taken up where it stopped; what is finished is not done again.

    Raises: RunError for a folder that holds another run, or a full disk; what training and evaluation raise.
    """
    folder = Path(folder)
    recipe = desk(minutes)
    say = console.print
    say("[bold]Weft demo[/]: a multimodal language model grown from nothing on real handwriting.")
    say(f"[dim]{len(recipe.stages)} stages, about {minutes:g} minutes of training on two CPU cores; all in[/] {folder}\n")
    trainer = Trainer(recipe, folder, tokenizer=tokenizer(), seed=seed, callbacks=[progress_view(console)], processes=processes)
    trainer.fit(resume=(folder / RUN).exists())

    say("\n[bold]Measuring[/] on handwriting that no stage ever saw, beside three baselines")
    began = time.perf_counter()
    model = load_model(folder / "model")
    text_only = load_model(folder / "stages" / BASELINE)
    benchmark = DeskBenchmark.Config(num_per_type=questions_per_type).build()
    with _progress(console) as tell:
        settings = EvaluationSettings(folder=folder / "evaluation", batch_size=64)
        evaluation = evaluate(model, benchmark, settings, text_only=text_only, progress=tell)
    _say_scores(console, evaluation)

    circumstances = Circumstances(folder, minutes, seed, stage_seconds(folder), time.perf_counter() - began, trainer.processes)
    page = write_report(report_content(recipe, model, benchmark, evaluation, circumstances), folder / "report")
    say(f"\nReport: [bold]{page}[/]")
    say(f"Talk to it: [bold]weft chat {folder / 'model'} --image {folder / 'report' / 'canvas.png'}[/]")
    return evaluation


class _progress:
    """A progress bar over the questions of every run."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description:>24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self.tasks: dict[str, int] = {}

    def __enter__(self) -> _progress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, run: str, done: int, total: int) -> None:
        if run not in self.tasks:
            self.tasks[run] = self.bar.add_task(RUN_TITLES.get(run, run), total=total)
        self.bar.update(self.tasks[run], completed=done)  # type: ignore[arg-type]


def _say_scores(console: Console, evaluation: Evaluation) -> None:
    from rich.table import Table

    runs = [run for run in (MODEL, BLIND, TEXT_ONLY, MOST_FREQUENT) if run in evaluation.runs]
    table = Table(box=None, header_style="dim")
    table.add_column("question type")
    for run in runs:
        table.add_column(RUN_TITLES[run], justify="right")
    for type in evaluation.types:
        estimates = [evaluation.by_type(type, run) for run in runs]
        table.add_row(evaluation.title(type), *("" if e is None else f"{e.value:.0%}" for e in estimates))
    means = [evaluation.mean(run) for run in runs]
    table.add_row("[bold]mean over types[/]", *("" if m is None else f"[bold]{m.value:.1%}[/]" for m in means))
    console.print(table)
    if (mean := evaluation.mean()) is None or not 0.0 <= mean.value <= 1.0:
        raise RunError(f"the evaluation of {evaluation.benchmark} is incomplete; delete its folder and run again")
