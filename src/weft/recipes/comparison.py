"""`weft compare`: parts of one kind on the desk, each trained from the same towers on the same data with the same steps."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch

from weft.core import config
from weft.core.errors import ConfigError, RunError
from weft.data.tokenizers import Tokenizer
from weft.evaluation.benchmarks.desk import DeskBenchmark
from weft.evaluation.evaluation import BLIND
from weft.evaluation.runner import EvaluationSettings, evaluate
from weft.recipes.comparison_candidates import ROOMS, STREAM, Candidate, candidates, placed
from weft.recipes.comparison_progress import ComparisonProgress
from weft.recipes.comparison_row import Measures, Row, load_row
from weft.recipes.comparison_table import Comparison, write_comparison
from weft.recipes.desk import BASELINE, desk, tokenizer
from weft.recipes.loading import load_model
from weft.systems.accounting import SampleShape, num_parameters, on_meta
from weft.systems.dual_encoder import DualEncoder
from weft.systems.multimodal_lm import MultimodalLM
from weft.training.atomic import atomic_folder
from weft.training.interrupts import TrainingInterrupted
from weft.training.logging import read_metrics
from weft.training.memory import stage_cost
from weft.training.progress import TrainingCallback
from weft.training.run_folder import RECIPE, RUN
from weft.training.stage import Recipe, Stage
from weft.training.trainer import Trainer, continues

STEPS = 2400
QUICK_STEPS = 1500
QUESTIONS_PER_TYPE = 100
QUICK_QUESTIONS_PER_TYPE = 50
TEXT_TOKENS = 64
"""The words of the sample that operations are counted on."""
SHARED, ROWS = "shared", "rows"
_SHARED_SEED = 0


@dataclass(frozen=True)
class Plan:
    """What a comparison trains: the stages that no candidate changes once, the others for every row.

    `steps` are the last stage's; earlier stages keep the recipe's number, at most as many.

    Raises: ConfigError for fewer than one step or seed, and what `candidates` raises.
    """

    room: str
    steps: int = STEPS
    num_seeds: int | None = None
    only: Sequence[str] | None = None
    questions_per_type: int = QUESTIONS_PER_TYPE

    def __post_init__(self) -> None:
        if self.steps < 1 or (self.num_seeds is not None and self.num_seeds < 1):
            raise ConfigError(f"a comparison takes 1 step and 1 seed or more, got {self.steps} and {self.num_seeds}")
        candidates(self.room, desk(), self.only, self.num_seeds)

    @property
    def recipe(self) -> Recipe:
        """The desk's recipe with the steps of this comparison."""
        recipe = desk()
        last = len(recipe.stages) - 1
        return replace(recipe, stages=tuple(self._shortened(s, index == last) for index, s in enumerate(recipe.stages)))

    def _shortened(self, stage: Stage, last: bool) -> Stage:
        assert stage.steps is not None  # the desk plans its stages in steps
        return replace(stage, steps=self.steps if last else min(stage.steps, self.steps))

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        return candidates(self.room, self.recipe, self.only, self.num_seeds)[0]

    @property
    def left_out(self) -> Mapping[str, str]:
        """The parts of the room that cannot be compared, and why."""
        return candidates(self.room, self.recipe)[1]

    @property
    def rows(self) -> tuple[tuple[Candidate, int], ...]:
        """Candidate and seed of every row: the first seed of every candidate, then the second ones."""
        pairs = [(candidate, seed) for candidate in self.candidates for seed in candidate.seeds]
        return tuple(sorted(pairs, key=lambda pair: pair[1]))

    def recipe_of(self, candidate: Candidate) -> Recipe:
        """All stages with the candidate in its place."""
        return replace(self.recipe, stages=tuple(placed(stage, candidate.config) for stage in self.recipe.stages))

    @property
    def shared(self) -> Recipe:
        """The stages that no candidate changes, neither itself nor through what they start from."""
        changed: set[str] = set()
        for index, stage in enumerate(self.recipe.stages):
            before = continues(self.recipe, index) and self.recipe.stages[index - 1].name in changed
            if before or self.room in _rooms_in(stage) or changed.intersection(stage.takes):
                changed.add(stage.name)
        return replace(self.recipe, stages=tuple(s for s in self.recipe.stages if s.name not in changed))

    def own_stages(self, candidate: Candidate) -> tuple[Stage, ...]:
        """The stages that a row trains."""
        shared = {stage.name for stage in self.shared.stages}
        return tuple(stage for stage in self.recipe_of(candidate).stages if stage.name not in shared)

    @property
    def steps_a_row(self) -> int:
        """Of all stages that a row trains."""
        return sum(stage.steps or 0 for stage in self.own_stages(self.candidates[0]))

    @property
    def pieces(self) -> tuple[tuple[Stage, ...], ...]:
        """What is trained in turn: the shared stages, then those of every row."""
        return (self.shared.stages, *(self.own_stages(candidate) for candidate, _ in self.rows))

    @property
    def num_questions(self) -> int:
        return self.questions_per_type * len(DeskBenchmark.Config().types)


def _rooms_in(stage: Stage) -> tuple[str, ...]:
    """The rooms whose candidates have a place in a stage."""
    if isinstance(stage.system, DualEncoder.Config):
        return ("encoders",)
    return ROOMS if isinstance(stage.system, MultimodalLM.Config) and STREAM in stage.system.streams else ()


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
    runner = _Runner(plan, Path(folder), progress, torch.device(device), checkpoint_seconds)
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

    def run(self) -> Comparison:
        words = tokenizer()
        self.progress.begin("shared stages", self.plan.shared.stages)
        shared = self.folder / SHARED
        self._train(self.plan.shared, shared, _SHARED_SEED, words)
        self.progress.end()
        done: list[Row] = []
        for candidate, seed in self.plan.rows:
            self.progress.begin(f"{candidate.name}, seed {seed}", self.plan.own_stages(candidate))
            done.append(self._row(candidate, seed, words))
            self.progress.end(done[-1])
            comparison = Comparison(self.plan.room, self.plan.steps, self.plan.questions_per_type, done, self.plan.left_out)
            write_comparison(comparison, self.folder)
        return comparison

    def _row(self, candidate: Candidate, seed: int, words: Tokenizer) -> Row:
        recipe, place = self.plan.recipe_of(candidate), row_folder(self.folder, candidate.name, seed)
        finished = load_row(place)
        if finished is not None and (place / RECIPE).read_text(encoding="utf-8") == config.dumps(recipe):
            if finished.questions_per_type != self.plan.questions_per_type:
                raise RunError(
                    f"{place} was measured with {finished.questions_per_type} questions a type, not "
                    f"{self.plan.questions_per_type}; ask as many, or give another folder with --output"
                )
            return finished
        for stage in self.plan.shared.stages:
            _share(self.folder / SHARED / "stages" / stage.name, place / "stages" / stage.name)
        measures = Measures(place, self.device)
        self._train(recipe, place, seed, words, measures)
        row = self._measured(candidate, seed, place, measures)
        row.save(place)
        return row

    def _train(self, recipe: Recipe, place: Path, seed: int, words: Tokenizer, *callbacks: TrainingCallback) -> None:
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
        last = self.plan.recipe_of(candidate).stages[-1]
        system = cast(MultimodalLM.Config, last.system)
        benchmark = DeskBenchmark.Config(num_per_type=self.plan.questions_per_type).build()
        settings = EvaluationSettings(folder=place / "evaluation", batch_size=64)
        model = load_model(place / "model", self.device)
        evaluation = evaluate(model, benchmark, settings, progress=self.progress.asked)
        accuracy, shuffled, gain = evaluation.mean(), evaluation.mean(BLIND), evaluation.gain(BLIND)
        assert accuracy is not None and shuffled is not None and gain is not None  # both runs cover every question
        stream = system.streams[STREAM]
        built = cast(MultimodalLM, on_meta(system))
        sample = SampleShape(TEXT_TOKENS, {STREAM: (1, *stream.encoder.unit_shape)})
        cost = stage_cost(last, built, sample).sample
        part = built.stream(STREAM)
        return Row(
            candidate=candidate.name,
            seed=seed,
            steps=self.plan.steps,
            questions_per_type=self.plan.questions_per_type,
            tokens=system.num_positions(STREAM),
            parameters=num_parameters(part.encoder if self.plan.room == "encoders" else part.projector),
            forward_flops=cost.forward_flops,
            training_flops=cost.forward_flops + cost.backward_flops,
            training_seconds=measures.training_seconds,
            peak_memory_bytes=measures.peak_memory_bytes,
            loss=_validation_loss(place, last.name),
            text_only_loss=_validation_loss(self.folder / SHARED, BASELINE),
            accuracy=accuracy,
            shuffled=shuffled,
            gain=gain,
        )


def _validation_loss(run: Path, stage: str) -> float:
    """The last loss on held-out samples that a stage wrote down."""
    return float([r["loss"] for r in read_metrics(run, "validation") if r["stage"] == stage][-1])


def _share(source: Path, target: Path) -> None:
    """Put a finished stage into a row's folder, where the trainer finds it and goes on behind it."""
    if target.exists():
        return
    with atomic_folder(target) as partial:
        for file in sorted(source.iterdir()):
            try:
                os.link(file, partial / file.name)
            except OSError:
                shutil.copy2(file, partial / file.name)
