"""`weft compare`: parts of one kind, or whole systems, each trained from the same towers on the desk and asked the same."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch

from weft.core import config
from weft.core.errors import RunError
from weft.core.interfaces import System
from weft.data.tokenizers import Tokenizer
from weft.evaluation.benchmark import Benchmark
from weft.evaluation.benchmarks.desk import DeskBenchmark
from weft.evaluation.evaluation import BLIND, MODEL, MOST_FREQUENT, TEXT_ONLY, Evaluation
from weft.evaluation.runner import EvaluationSettings, evaluate
from weft.inference.model import Model
from weft.recipes.comparison_plan import STREAM, Candidate, Plan
from weft.recipes.comparison_progress import ComparisonProgress
from weft.recipes.comparison_row import Measures, Row, load_row, training_seconds
from weft.recipes.comparison_table import NAME, Comparison
from weft.recipes.conditions import Conditions
from weft.recipes.loading import load_model
from weft.systems.accounting import SampleShape, num_parameters, on_meta
from weft.training.atomic import atomic_folder, write_text_atomically
from weft.training.freezing import freeze
from weft.training.interrupts import TrainingInterrupted
from weft.training.logging import read_metrics
from weft.training.memory import stage_cost
from weft.training.progress import TrainingCallback
from weft.training.run_folder import RECIPE, RUN
from weft.training.stage import Recipe, Stage
from weft.training.trainer import Trainer

TEXT_TOKENS = 64
"""The words of the sample that operations are counted on."""
SHARED, ROWS = "shared", "rows"
_SHARED_SEED = 0
_EVALUATION = "evaluation"


def compare(
    plan: Plan,
    folder: Path,
    progress: ComparisonProgress,
    device: torch.device | str = "cpu",
    checkpoint_seconds: float = 120.0,
) -> Comparison:
    """Train and measure what is not there yet, and write the table and the plot after every row.

    Raises: RunError for a folder that holds another comparison, or a full disk; TrainingInterrupted after Ctrl-C, with the
    work kept.
    """
    where = torch.device(device)
    runner = _Runner(plan, Path(folder), progress, where, checkpoint_seconds, Conditions.here(where))
    try:
        with progress:
            return runner.run()
    except TrainingInterrupted as stop:
        raise TrainingInterrupted(f"{stop}; the same command goes on") from None


def row_folder(folder: Path, candidate: str, seed: int) -> Path:
    """Where a row is trained and measured."""
    return Path(folder) / ROWS / f"{candidate}-{seed}"


@dataclass
class _Runner:
    plan: Plan
    folder: Path
    progress: ComparisonProgress
    device: torch.device
    checkpoint_seconds: float
    now: Conditions

    _places: dict[str, Path] = field(default_factory=dict)  # shared stage -> the run that trained it

    def run(self) -> Comparison:
        self.progress.begin("shared stages", self.plan.shared_stages)
        for run in self.plan.shared:
            self._share_and_train(run, self.folder / SHARED / run.name, _SHARED_SEED, self.plan.tokenizer())
            for stage in run.stages:
                self._places.setdefault(stage.name, self.folder / SHARED / run.name)
        self.progress.end()
        done: list[Row] = []
        for candidate, seed in self.plan.rows:
            self.progress.begin(f"{candidate.name}, seed {seed}", self.plan.own_stages(candidate))
            done.append(self._row(candidate, seed))
            self.progress.end(done[-1])
            plan = self.plan
            comparison = Comparison(plan.room, plan.budget, plan.questions_per_type, done, plan.left_out, plan.command)
            _write(comparison, self.folder)
        return comparison

    def _row(self, candidate: Candidate, seed: int) -> Row:
        place = row_folder(self.folder, candidate.name, seed)
        finished = load_row(place)
        if finished is not None and (place / RECIPE).read_text(encoding="utf-8") == config.dumps(candidate.recipe):
            if finished.questions_per_type != self.plan.questions_per_type:
                raise RunError(
                    f"{place} was measured with {finished.questions_per_type} questions a type, not "
                    f"{self.plan.questions_per_type}; ask as many, or give another folder with --output"
                )
            return finished
        measures = Measures(place, self.device, self.now)
        self._share_and_train(candidate.recipe, place, seed, self.plan.tokenizer(candidate), measures)
        row = self._measured(candidate, seed, place, measures)
        row.save(place)
        return row

    def _share_and_train(self, recipe: Recipe, place: Path, seed: int, words: Tokenizer, *callbacks: TrainingCallback) -> None:
        for stage in recipe.stages:
            if stage.name in self._places:
                _share(self._places[stage.name] / "stages" / stage.name, place / "stages" / stage.name)
        trainer = Trainer(
            recipe,
            place,
            tokenizer=words,
            seed=seed,
            device=self.device,
            callbacks=(*callbacks, self.progress),
            checkpoint_seconds=self.checkpoint_seconds,
        )
        trainer.fit(resume=(place / RUN).exists())

    def _measured(self, candidate: Candidate, seed: int, place: Path, measures: Measures) -> Row:
        plan, last = self.plan, candidate.recipe.stages[-1]
        benchmark = DeskBenchmark.Config(num_per_type=plan.questions_per_type, types=plan.types).build()
        model = load_model(place / "model", self.device)
        sample, tokens = _sample(model, benchmark)
        built = on_meta(last.system)
        cost = stage_cost(last, built, sample).sample
        without = 0 if candidate.without is None else num_parameters(on_meta(candidate.without))
        found = self._evaluated(model, benchmark, place / _EVALUATION)
        accuracy, shuffled, gain = found.mean(), found.mean(BLIND), found.gain(BLIND)
        assert accuracy is not None and shuffled is not None and gain is not None  # both runs cover every question
        return Row(
            candidate=candidate.name,
            family=candidate.family,
            seed=seed,
            steps=plan.steps_of(candidate),
            questions_per_type=plan.questions_per_type,
            tokens=tokens,
            parameters=num_parameters(built.get_submodule(candidate.counted)) - without,
            trained={stage.name: _trained_share(stage) for stage in plan.own_stages(candidate)},
            forward_flops=cost.forward_flops,
            training_flops=cost.forward_flops + cost.backward_flops,
            training_seconds=training_seconds(place),
            peak_memory_bytes=measures.peak_memory_bytes,
            loss=_validation_loss(place, last.name),
            text_only_loss=_validation_loss(self._places[plan.text_only], plan.text_only),
            accuracy=accuracy,
            shuffled=shuffled,
            gain=gain,
            text_only=found.mean(TEXT_ONLY),
            most_frequent=found.mean(MOST_FREQUENT) if MOST_FREQUENT in found.runs else None,
            by_type={
                type: {run: score for run in _TOLD if run in found.runs and (score := found.by_type(type, run)) is not None}
                for type in found.types
            },
            conditions=measures.conditions,
        )

    def _evaluated(self, model: Model, benchmark: Benchmark, place: Path) -> Evaluation:
        """The answers of a row beside the baselines; the text-only model is asked once for all rows."""
        asked, ours = self.folder / SHARED / f"{TEXT_ONLY}.jsonl", place / f"{TEXT_ONLY}.jsonl"
        if asked.exists() and not ours.exists():
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy2(asked, ours)
        blind = load_model(self._places[self.plan.text_only] / "stages" / self.plan.text_only, self.device)
        settings = EvaluationSettings(folder=place, batch_size=64)
        found = evaluate(model, benchmark, settings, text_only=blind, progress=self.progress.asked)
        if not asked.exists():
            shutil.copy2(ours, asked)
        return found


_TOLD = (MODEL, BLIND, TEXT_ONLY, MOST_FREQUENT)


def _sample(model: Model, benchmark: Benchmark) -> tuple[SampleShape, int]:
    """A picture of the benchmark beside `TEXT_TOKENS` words, and the tokens that it becomes, wherever they stand."""
    system, medium = model.system.config, next(benchmark.items()[0].conversation.media())
    opened = model.processor.config.transforms[STREAM].open(medium.source, system.layout(STREAM))
    units = (len(opened.units), *system.streams[STREAM].encoder.unit_shape)
    sample = SampleShape(TEXT_TOKENS, {STREAM: units}, {STREAM: opened.layout})
    return sample, system.streams[STREAM].projector.num_tokens(opened.layout)


def _trained_share(stage: Stage) -> float:
    """Of a stage's parameters, those that it trains."""
    built: System = on_meta(stage.system)
    return num_parameters(freeze(built, stage.train, f"stage {stage.name!r}").values()) / num_parameters(built)


def _validation_loss(run: Path, stage: str) -> float:
    """The last loss on held-out samples that a stage wrote down."""
    return float([r["loss"] for r in read_metrics(run, "validation") if r["stage"] == stage][-1])


def _share(source: Path, target: Path) -> None:
    """Put a finished stage into another run's folder, where the trainer finds it and goes on behind it."""
    if target.exists():
        return
    with atomic_folder(target) as partial:
        for file in sorted(source.rglob("*")):
            there = partial / file.relative_to(source)
            if file.is_dir():
                there.mkdir()
                continue
            try:
                os.link(file, there)
            except OSError:
                shutil.copy2(file, there)


def _write(comparison: Comparison, folder: Path) -> None:
    """Write `comparison.md`, `comparison.json`, `comparison.svg` and `comparison.png`."""
    from weft.recipes.comparison_plot import comparison_plot, standalone_svg

    write_text_atomically(folder / f"{NAME}.md", comparison.markdown())
    write_text_atomically(folder / f"{NAME}.json", json.dumps(comparison.as_json(), indent=2) + "\n")
    drawing = comparison_plot(comparison)
    write_text_atomically(folder / f"{NAME}.svg", standalone_svg(drawing))
    drawing.png(folder / f"{NAME}.png")
