"""The trainer: a recipe, stage by stage, into a run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from weft.core.batch import MultimodalBatch
from weft.core.errors import ConfigError, RunError, WeftError
from weft.core.interfaces import Objective, System
from weft.data.collate import collate
from weft.data.dataset import Dataset
from weft.data.encoded_sample import EncodedSample
from weft.data.packing import pack
from weft.data.tokenizers import Tokenizer
from weft.training.allocator import keep_freed_memory
from weft.training.checkpointing import CheckpointPlace, Checkpoints
from weft.training.cluster_targets import (
    FrameFeatures,
    Labelled,
    check_targets,
    frame_features,
    read_clusters,
    system_of,
    write_cluster_targets,
)
from weft.training.data_stream import DataStream, SampleOrder
from weft.training.freezing import freeze
from weft.training.interrupts import Interrupts, TrainingInterrupted
from weft.training.logging import Log, RunLog, SilentLog, read_metrics, rewind_metrics
from weft.training.model_folder import WEIGHTS, load_weights, read_weights, write_model_folder
from weft.training.optimizers import StageOptimizer, build_optimizer
from weft.training.progress import StageEnd, StageStart, StepReport, TrainingCallback, describe
from weft.training.randomness import seed_everything
from weft.training.ranks import LocalRanks, Ranks
from weft.training.run_folder import RunFolder
from weft.training.sample_reader import Encode, SampleReader
from weft.training.schedules import num_steps
from weft.training.stage import Recipe, Stage
from weft.training.stage_loop import StageLoop, record
from weft.training.taking import take

Encoded = Sequence[EncodedSample]  # of one conversation
Reader = Callable[..., SampleReader]  # of a data set, and of what is made of its samples if not what a step learns from

_LOG_LINE_SECONDS = 10.0
_STEPS_AHEAD = 4


class Trainer:
    """Trains the stages of a recipe in order and leaves a model folder per stage.

    `initialise` has by stage what fills its fresh system (published weights), before what it takes from earlier stages.
    Checkpoints are written every `checkpoint_every` steps, or every `checkpoint_seconds`, and on Ctrl-C; the last
    `keep_checkpoints` stay until their stage is finished.
    On a CPU, `processes` of one thread each share every step's samples; a run goes on with as many as it was started with.
    A medium that cannot be read stops a run; with `skip_broken`, which a resumed run may be the first to ask for, its sample
    is left out.

    Raises: ConfigError, before anything is written, for a recipe that cannot be trained as it stands.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path | str,
        *,
        tokenizer: Tokenizer,
        seed: int = 0,
        device: torch.device | str | None = None,
        callbacks: Sequence[TrainingCallback] = (),
        initialise: Mapping[str, Callable[[System], None]] | None = None,
        checkpoint_every: int | None = None,
        checkpoint_seconds: float = 120.0,
        keep_checkpoints: int = 2,
        validate_every: int | None = None,
        validation_samples: int = 128,
        tensorboard: bool = False,
        processes: int = 1,
        skip_broken: bool = False,
    ) -> None:
        self.recipe = recipe
        self.folder = RunFolder(folder)
        self.tokenizer = tokenizer
        self.seed = seed
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.callbacks = tuple(callbacks)
        self.initialise = dict(initialise or {})
        self.checkpoints = Checkpoints(self.folder.checkpoints, keep_checkpoints)
        self.checkpoint_every = checkpoint_every
        self.checkpoint_seconds = checkpoint_seconds
        self.validate_every = validate_every
        self.validation_samples = validation_samples
        self.tensorboard = tensorboard
        self.processes = processes
        self.skip_broken = skip_broken
        self.ranks = Ranks()
        if processes < 1:
            raise ConfigError(f"training takes 1 process or more, got {processes}")
        check_recipe(recipe, processes)
        if processes > 1 and self.device.type != "cpu":
            raise ConfigError(
                f"{processes} processes share the cores of one machine; on {self.device.type} train in one process"
            )

    def fit(self, resume: bool = False) -> Path:
        """Train what is not trained yet; returns the last stage's model folder.

        Raises: RunError for a folder that cannot be used, a full disk or a loss that is not finite; TrainingInterrupted after
        Ctrl-C, with the work up to the last whole step in a checkpoint.
        """
        tokenizer_text = self.tokenizer.backend.to_str()
        try:
            if resume:
                self.processes = self.folder.resume(self.recipe, self.seed, tokenizer_text)
                self._rewind()
            else:
                self.folder.start(self.recipe, self.seed, tokenizer_text, self.processes)
            with LocalRanks(self.processes, self._train_along) as self.ranks:
                self._fit_logged()
        except Exception:
            self.folder.abandon()
            raise
        finally:
            self.folder.release()
            for callback in self.callbacks:
                if (close := getattr(callback, "close", None)) is not None:
                    close()
        return self.folder.model

    def _train_along(self, ranks: Ranks) -> None:
        """What every rank but the first does: the same steps, without a word."""
        self.ranks, self.callbacks = ranks, ()
        self.folder.release()  # the first rank's hold on the folder ends with the first rank
        with Interrupts() as interrupts:
            self._fit(SilentLog(self.folder.path), interrupts)

    def _fit_logged(self) -> None:
        log = RunLog(self.folder.path, self.tensorboard)
        try:
            with Interrupts() as interrupts:
                self._fit(log, interrupts)
        except (WeftError, TrainingInterrupted) as error:
            with suppress(RunError):  # a full disk has a first reason, and that is the one to tell
                log.text(str(error))
            raise
        finally:
            log.close()

    def _fit(self, log: Log, interrupts: Interrupts) -> None:
        keep_freed_memory(self.device)
        system: System | None = None
        for index, stage in enumerate(self.recipe.stages):
            if self.folder.stage(stage.name).exists():
                continue
            self._train_stage(index, stage, system := self._system(index, system, log), log, interrupts)
        last = self.recipe.stages[-1].name
        if self.ranks.first and not self.folder.model.exists():
            self.folder.publish(last)
        log.text(f"finished: {self.folder.model}")
        if interrupts.requested:  # too late for a step: what the caller would do next is what is stopped
            raise TrainingInterrupted(f"training had finished when it was told to stop; {self.folder.model} is whole")

    def _system(self, index: int, before: System | None, log: Log) -> System:
        """The stage's system as it starts: fresh, taken from earlier stages, or the one before going on."""
        stage = self.recipe.stages[index]
        seed_everything(self.seed, stage.name, "build")
        if continues(self.recipe, index):
            if before is not None:
                return before
            system = stage.system.build()
            place = self.folder.stage(self.recipe.stages[index - 1].name) / WEIGHTS
            load_weights(system, read_weights(place), str(place))
            return system.to(self.device)
        system = stage.system.build()
        if stage.name in self.initialise:
            self.initialise[stage.name](system)
        if index:
            unplaced = take(stage, system, lambda name: read_weights(self.folder.stage(name) / WEIGHTS))
            if unplaced:
                shown = ", ".join(unplaced[:8])
                log.text(f"stage {stage.name}: {len(unplaced)} tensors of earlier stages have no place here: {shown}")
        return system.to(self.device)

    def _train_stage(self, index: int, stage: Stage, system: System, log: Log, interrupts: Interrupts) -> None:
        began = time.perf_counter()
        processor = stage.processor.build(self.tokenizer, stage.system)
        encode = partial(processor.encode_all, max_tokens=stage.max_tokens)

        def reader(data: Dataset, made: Encode = encode) -> SampleReader:
            return SampleReader(data, made, self.skip_broken, lambda line: log.own(f"stage {stage.name} data: {line}"))

        dataset = self._dataset(stage, reader)
        steps = num_steps(stage, len(dataset))
        trained = freeze(system, stage.train, f"stage {stage.name!r}")
        reduced = torch.bfloat16 if stage.precision == "bf16" else torch.float32
        optimizer = build_optimizer(stage.optimizer, system, trained, reduced)
        objective = stage.objective.build().to(self.device)
        if self.ranks.group is not None:
            objective.across(self.ranks.group)
        self._require_space(stage, system, trained)

        seed_everything(self.seed, stage.name, "steps")
        first = self._restore(stage, system, optimizer, objective)
        start = StageStart(
            name=stage.name,
            title=stage.title,
            index=index,
            num_stages=len(self.recipe.stages),
            steps=steps,
            first_step=first,
            trained_parameters=sum(p.numel() for p in trained.values()),
            all_parameters=sum(p.numel() for p in system.parameters()),
        )
        for callback in self.callbacks:
            callback.on_stage_start(start)
        share = f"{start.trained_parameters:,} of {start.all_parameters:,} parameters train"
        log.text(f"stage {stage.name} steps {first}..{steps}: {share}")
        for remark in dataset.remarks():
            log.text(f"stage {stage.name} data: {remark}")

        loop = StageLoop(
            stage,
            system,
            objective,
            optimizer,
            steps=steps,
            device=self.device,
            last_good=partial(self._last_good, stage),
            ranks=self.ranks,
        )
        last: dict[str, StepReport] = {}
        lines = {"last": 0.0}

        def tell(report: StepReport) -> None:
            last[report.kind] = report
            log.metrics(record(report))
            if report.kind == "validation":
                log.text(f"{report.stage} step {report.step}/{report.steps} validation loss {report.loss:.4f}")
            elif report.seconds - lines["last"] >= _LOG_LINE_SECONDS or report.step in (1, steps):
                lines["last"] = report.seconds
                log.text(f"{report.stage} {describe(report)}")
            for callback in self.callbacks:
                callback.on_step(report)

        saved = {"time": time.perf_counter()}

        def keep(step: int) -> None:
            due = time.perf_counter() - saved["time"] >= self.checkpoint_seconds
            if self.checkpoint_every is not None:
                due = step % self.checkpoint_every == 0
            (stopping,) = self.ranks.any(interrupts.requested)
            kept = self.checkpoints.folder
            if self.ranks.first and (stopping or (due and step < steps)):
                kept = self.checkpoints.save(stage.name, step, self.folder.run_id, system, optimizer, objective).path
                saved["time"] = time.perf_counter()
            if stopping:
                raise TrainingInterrupted(f"stopped after step {step} of stage {stage.name!r}; {kept} is kept")
            self._seed_step(stage, step)

        assemble = partial(_assemble, packing=stage.packing, max_tokens=stage.max_tokens)
        samples = reader(dataset)
        stream = DataStream(
            samples,
            SampleOrder(len(dataset), stage.batch_size, self.seed, stage.name, dataset.endless, dataset.shuffled),
            assemble,
            micro_batch_size=stage.micro_batch_size or stage.batch_size,
            start=first,
            stop=steps,
            ahead=0 if self.device.type == "cpu" else _STEPS_AHEAD,
            ranks=self.ranks,
        )
        validation = self._validation(stage, reader, assemble, whole=not objective.additive)
        self._seed_step(stage, first)
        with stream:
            loop.run(stream, tell, keep, validation, self.validate_every)
        left_out, read = self.ranks.total(samples.num_left_out, samples.num_read)
        if left_out:
            log.text(f"stage {stage.name} data: {left_out:,} of {left_out + read:,} samples were left out, others stood in")

        system.eval()
        if self.ranks.first:
            write_model_folder(self.folder.stage(stage.name), system, processor)
            self.checkpoints.drop(stage.name)
        self.ranks.wait()  # later stages take from the folder
        end = StageEnd(
            name=stage.name,
            seconds=time.perf_counter() - began,
            folder=self.folder.stage(stage.name),
            loss=last["train"].loss if "train" in last else None,
            validation_loss=last["validation"].loss if "validation" in last else None,
        )
        log.text(f"stage {stage.name} finished in {end.seconds:.1f} s: {end.folder}")
        for callback in self.callbacks:
            callback.on_stage_end(end)

    def _dataset(self, stage: Stage, reader: Reader) -> Dataset:
        """The stage's data; its targets are found now where it has some, unless an interrupted run found them already."""
        dataset, place = stage.data.build(), self.folder.targets(stage.name)
        if stage.targets is None:
            return dataset
        if self.ranks.first and not place.exists():
            write_cluster_targets(place, stage, reader(dataset, self._frame_features(stage)))
        self.ranks.wait()
        return Labelled.from_folder(dataset, stage, place)

    def _with_targets(self, stage: Stage, held_out: Dataset) -> Dataset:
        """Held-out data, labelled by the clusters of the training data."""
        if stage.targets is None:
            return held_out
        clusters, features = read_clusters(self.folder.targets(stage.name)), self._frame_features(stage)
        return Labelled(held_out, system_of(stage).stream, lambda _, conversation: clusters.labels(features(conversation)))

    def _frame_features(self, stage: Stage) -> FrameFeatures:
        assert stage.targets is not None
        name = stage.targets.stage
        if name is None:
            return frame_features(stage, None, lambda system: None, self.tokenizer)
        place = self.folder.stage(name) / WEIGHTS
        fill = lambda system: load_weights(system, read_weights(place), str(place))  # noqa: E731
        return frame_features(stage, self.recipe.stage(name), fill, self.tokenizer, self.device)

    def _seed_step(self, stage: Stage, step: int) -> None:
        """Of several ranks each draws by itself, and nobody keeps their generators: a step's draws depend on its number."""
        if self.ranks.size > 1:
            seed_everything(self.seed, stage.name, "step", step, self.ranks.rank)

    def _validation(
        self, stage: Stage, reader: Reader, assemble: Callable[[Sequence[Encoded]], MultimodalBatch], whole: bool
    ) -> list[MultimodalBatch]:
        """The held-out batches of a stage: its first samples, the same for every run and step.

        `whole` takes full batches only, at least one: the loss of an objective with in-batch negatives depends on their number.
        """
        if stage.validation is None:
            return []
        dataset = self._with_targets(stage, stage.validation.build())
        size = stage.micro_batch_size or stage.batch_size
        count = max(self.validation_samples, size) if whole else self.validation_samples
        count = count if dataset.endless else min(count, len(dataset))
        if whole and count >= size:
            count -= count % size
        if not whole:
            size *= self.ranks.size
        if (rest := count % size) < self.ranks.size:
            count -= rest  # too few for every rank to have one
        batches = [self.ranks.share(range(first, min(first + size, count))) for first in range(0, count, size)]
        samples = reader(dataset)
        return [assemble([samples.standing_at(i, size) for i in part]) for part in batches]

    def _restore(self, stage: Stage, system: System, optimizer: StageOptimizer, objective: Objective) -> int:
        place = self._newest(stage)
        if place is None:
            return 0
        self.checkpoints.load(place, self.folder.run_id, system, optimizer, objective)
        return place.step

    def _newest(self, stage: Stage) -> CheckpointPlace | None:
        places = self.checkpoints.all(stage.name)
        return places[-1] if places else None

    def _rewind(self) -> None:
        """Drop the metrics of steps that will be taken again."""
        kept: dict[str, float] = {}
        for stage in self.recipe.stages:
            place = self._newest(stage)
            kept[stage.name] = float("inf") if self.folder.stage(stage.name).exists() else place.step if place else 0
        if read_metrics(self.folder.path):
            rewind_metrics(self.folder.path, lambda r: r["step"] <= kept.get(str(r["stage"]), 0))

    def _last_good(self, stage: Stage) -> str:
        place = self._newest(stage)
        return f"the last good checkpoint is {place.path}" if place else "no checkpoint of this stage was written yet"

    def _require_space(self, stage: Stage, system: nn.Module, trained: Mapping[str, Tensor]) -> None:
        weights = sum(t.numel() * t.element_size() for t in system.state_dict().values())
        moments = 2 * sum(p.numel() * p.element_size() for p in trained.values())
        needed = (weights + moments) * (self.checkpoints.keep + 1) + weights
        self.folder.require_space(needed, f"stage {stage.name!r}")


def check_recipe(recipe: Recipe, processes: int = 1) -> None:
    """Find what would stop a later stage before the first one starts; systems are built without memory.

    Raises: ConfigError for doubled stage names, patterns that match nothing, parameters that no stage fills, and objectives
    that cannot be accumulated or packed.
    """
    names = [stage.name for stage in recipe.stages]
    if len(set(names)) < len(names) or not names:
        raise ConfigError(f"recipe {recipe.name!r} needs stages of different names, got {names}")
    states: dict[str, Mapping[str, Tensor]] = {}
    for index, stage in enumerate(recipe.stages):
        objective = type(stage.objective.build())
        micro = stage.micro_batch_size or stage.batch_size
        if stage.batch_size < processes:
            raise ConfigError(
                f"stage {stage.name!r} takes {stage.batch_size} samples a step, too few for {processes} processes; give fewer"
            )
        if not objective.additive and (stage.packing or micro < stage.batch_size):
            raise ConfigError(
                f"stage {stage.name!r}: {objective.__name__} compares the samples of a batch, so it can be neither accumulated "
                f"nor packed; set micro_batch_size={stage.batch_size} (now {micro}) and packing=False (now {stage.packing})"
            )
        try:
            with torch.device("meta"):
                system = stage.system.build()
        except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            raise ConfigError(
                f"stage {stage.name!r}: its system cannot be built ({type(error).__name__}: {error}); change its sizes"
            ) from error
        trained = freeze(system, stage.train, f"stage {stage.name!r}")
        build_optimizer(stage.optimizer, system, trained)
        if stage.targets is not None:
            check_targets(stage, recipe.stages[:index])
        if not index and stage.takes:
            raise ConfigError(f"stage {stage.name!r} is the first and has nothing to take from; leave out takes")
        if index and not continues(recipe, index):
            if unknown := sorted(set(stage.takes) - set(names[:index])):
                raise ConfigError(
                    f"stage {stage.name!r} takes from {unknown}, which is no earlier stage; earlier are {names[:index]}"
                )
            take(stage, system, states.__getitem__)
        states[stage.name] = system.state_dict()


def continues(recipe: Recipe, index: int) -> bool:
    """Whether a stage goes on with the system of the stage before."""
    stage = recipe.stages[index]
    return index > 0 and not stage.takes and not stage.new and stage.system == recipe.stages[index - 1].system


def _assemble(encoded: Sequence[Encoded], packing: bool, max_tokens: int) -> MultimodalBatch:
    samples = [sample for conversation in encoded for sample in conversation]
    return collate(pack(samples, max_tokens)) if packing else collate(samples)
