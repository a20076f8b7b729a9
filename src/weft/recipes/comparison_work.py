"""The work of a comparison: shared stages and rows, trained and measured in their folders."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
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
from weft.recipes.comparison_process import RowProgress
from weft.recipes.comparison_row import Measures, Row, load_row, training_seconds
from weft.recipes.conditions import Conditions
from weft.recipes.loading import load_model
from weft.systems.accounting import SampleShape, num_parameters, on_meta
from weft.training.atomic import atomic_folder
from weft.training.freezing import freeze
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


def row_folder(folder: Path, candidate: str, seed: int) -> Path:
    """Where a row is trained and measured."""
    return Path(folder) / ROWS / f"{candidate}-{seed}"


@dataclass(frozen=True)
class ComparisonWork:
    """Trains and measures what a plan names, in a folder, under the conditions `now`."""

    plan: Plan
    folder: Path
    device: torch.device
    checkpoint_seconds: float
    now: Conditions

    @property
    def places(self) -> dict[str, Path]:
        """By shared stage the run that trains it: the first that has it."""
        found: dict[str, Path] = {}
        for run in self.plan.shared:
            for stage in run.stages:
                found.setdefault(stage.name, self.folder / SHARED / run.name)
        return found

    def train_shared(self, progress: RowProgress) -> None:
        """Train the shared stages that are not there yet."""
        for run in self.plan.shared:
            self._train(run, self.folder / SHARED / run.name, _SHARED_SEED, self.plan.tokenizer(), progress)

    def finished(self, candidate: Candidate, seed: int) -> Row | None:
        """A row that stands already. Raises: RunError for one that was asked another number of questions."""
        place = row_folder(self.folder, candidate.name, seed)
        row = load_row(place)
        if row is None or (place / RECIPE).read_text(encoding="utf-8") != config.dumps(candidate.recipe):
            return None
        if row.questions_per_type != self.plan.questions_per_type:
            raise RunError(
                f"{place} was measured with {row.questions_per_type} questions a type, not {self.plan.questions_per_type}; "
                "ask as many, or give another folder with --output"
            )
        return row

    def row(self, candidate: Candidate, seed: int, progress: RowProgress) -> Row:
        """Train a row, or go on with it, and measure it."""
        place = row_folder(self.folder, candidate.name, seed)
        measures = Measures(place, self.device, self.now)
        self._train(candidate.recipe, place, seed, self.plan.tokenizer(candidate), measures, progress)
        row = self._measured(candidate, seed, place, measures, progress)
        row.save(place)
        return row

    def _train(self, recipe: Recipe, place: Path, seed: int, words: Tokenizer, *callbacks: TrainingCallback) -> None:
        places = self.places
        for stage in recipe.stages:
            if places.get(stage.name, place) != place:
                _share(places[stage.name] / "stages" / stage.name, place / "stages" / stage.name)
        trainer = Trainer(
            recipe,
            place,
            tokenizer=words,
            seed=seed,
            device=self.device,
            callbacks=callbacks,
            checkpoint_seconds=self.checkpoint_seconds,
        )
        trainer.fit(resume=(place / RUN).exists())

    def _measured(self, candidate: Candidate, seed: int, place: Path, measures: Measures, progress: RowProgress) -> Row:
        plan, last = self.plan, candidate.recipe.stages[-1]
        benchmark = DeskBenchmark.Config(num_per_type=plan.questions_per_type, types=plan.types).build()
        model = load_model(place / "model", self.device)
        sample, tokens = _sample(model, benchmark)
        built = on_meta(last.system)
        cost = stage_cost(last, built, sample).sample
        without = 0 if candidate.without is None else num_parameters(on_meta(candidate.without))
        found = self._evaluated(model, benchmark, place / _EVALUATION, progress)
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
            text_only_loss=_validation_loss(self.places[plan.text_only], plan.text_only),
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

    def _evaluated(self, model: Model, benchmark: Benchmark, place: Path, progress: RowProgress) -> Evaluation:
        """The answers of a row beside the baselines; the text-only model is asked once for all rows."""
        asked, ours = self.folder / SHARED / f"{TEXT_ONLY}.jsonl", place / f"{TEXT_ONLY}.jsonl"
        if asked.exists() and not ours.exists():
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy2(asked, ours)
        blind = load_model(self.places[self.plan.text_only] / "stages" / self.plan.text_only, self.device)
        settings = EvaluationSettings(folder=place, batch_size=64)
        found = evaluate(model, benchmark, settings, text_only=blind, progress=progress.asked)
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
