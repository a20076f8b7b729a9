"""Ask a model every question of a benchmark, mark its answers, and put the baselines beside them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from weft.core.config import to_dict
from weft.core.conversation import Conversation
from weft.core.errors import ConfigError, DataError, UnreadableMedium
from weft.data.images import open_image
from weft.data.processor import Processor
from weft.evaluation.benchmark import Benchmark, Item, ReadBox, question_text, shuffled, without_media
from weft.evaluation.evaluation import BLIND, MODEL, MOST_FREQUENT, TEXT_ONLY, Evaluation
from weft.evaluation.records import Record, RecordFile
from weft.evaluation.unreadable import made_or_refused
from weft.inference.sampling import Sampling

Progress = Callable[[str, int, int], None]
"""Called with the run's name, the answers there are, and the answers there will be."""


class Answer(Protocol):
    """What was answered, as text."""

    @property
    def text(self) -> str: ...


class Answering(Protocol):
    """What can be asked: a `Model`, or a dual encoder that chooses among classes or searches pairs."""

    @property
    def system(self) -> nn.Module: ...

    @property
    def processor(self) -> Processor: ...

    def generate(
        self, conversations: Sequence[Conversation], settings: Sampling, *, batch_size: int = ...
    ) -> Sequence[Answer]: ...


_FINGERPRINT_VALUES = 4096
_ASKED_TOGETHER = (
    64  # answers are kept after so many questions; the same whatever the batch size, as random streams count from here
)


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How to ask. `sampling` None is greedy with the benchmark's own limit of new tokens; `batch_size` changes no answer.

    `folder` keeps the records, one `<run>.jsonl` a run, and lets an interrupted evaluation go on; None keeps nothing.
    """

    batch_size: int = 32
    sampling: Sampling | None = None
    blind: bool = True
    folder: str | Path | None = None


def evaluate(
    model: Answering,
    benchmark: Benchmark,
    settings: EvaluationSettings = EvaluationSettings(),
    *,
    text_only: Answering | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Answers and marks of the model on a benchmark, with the baselines beside them.

    Baselines on the same items: the same model with pictures shuffled between items (`blind`, where no pairs are searched), a
    text-only model trained alike (`text_only`, asked without pictures), the most frequent training answer per type, and the
    benchmark's own expectations. Answers that `settings.folder` already holds are not asked again.

    A question with a medium that cannot be read is recorded with the reason and counts as wrong, in the shuffled run the
    question that was given the medium; with a folder it is asked again by the next call.

    Raises: RunError where the folder holds the answers of another model, benchmark or sampling; ConfigError for a text-only
    model on a benchmark for dual encoders; DataError where no question could be asked.
    """
    if text_only is not None and (benchmark.classes or benchmark.pairs):
        raise ConfigError(
            f"{benchmark.name!r} compares media with texts; leave out the text-only model, which compares nothing"
        )
    items = benchmark.items()
    runs = {MODEL: _ask(MODEL, model, items, benchmark, settings, progress)}
    if items and all(record.error for record in runs[MODEL]):
        raise DataError(f"none of the {len(items)} questions of {benchmark.name!r} could be asked: {runs[MODEL][0].error}")
    if settings.blind and benchmark.pairs is None:
        runs[BLIND] = _ask(BLIND, model, shuffled(items), benchmark, settings, progress)
    if text_only is not None:
        asked = without_media(items, text_only.processor.config.boxes.render)
        runs[TEXT_ONLY] = _ask(TEXT_ONLY, text_only, asked, benchmark, settings, progress)
    for name, records in _computed(items, benchmark).items():
        runs[name] = _keep(name, records, benchmark, settings)
    evaluation = Evaluation(
        benchmark.name, runs, dict(benchmark.titles), protocol(model, benchmark, settings), dict(benchmark.notes)
    )
    if settings.folder is not None:
        evaluation.save(settings.folder)
    return evaluation


def box_reader(model: Answering, item: Item) -> ReadBox:
    """Reads boxes as the model writes them, in fractions of the item's picture, whose shape a padded format depends on."""
    boxes = model.processor.config.boxes
    medium = next((m for m in item.conversation.media() if m.stream == "image"), None)
    size = open_image(medium.source).size if boxes.square and medium is not None else None
    return lambda text: boxes.parse(text, size)


def protocol(model: Answering, benchmark: Benchmark, settings: EvaluationSettings) -> dict[str, Any]:
    """What makes two evaluations the same one: weights, prompt format, benchmark and sampling."""
    return {
        "model": fingerprint(model.system),
        "processor": _digest(str(to_dict(model.processor.config))),
        "benchmark": benchmark.name,
        "benchmark_config": _plain(getattr(benchmark, "config", None)),
        "sampling": _plain(_sampling(benchmark, settings)),
    }


def fingerprint(system: nn.Module) -> str:
    """A short hash of the weights: names, shapes and up to 4,096 evenly spaced values of each tensor."""
    digest = hashlib.sha256()
    for name, tensor in sorted(system.state_dict().items()):
        flat = tensor.detach().flatten()
        kept = flat[:: max(1, len(flat) // _FINGERPRINT_VALUES)][:_FINGERPRINT_VALUES]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(kept.double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _ask(
    run: str,
    model: Answering,
    items: Sequence[Item],
    benchmark: Benchmark,
    settings: EvaluationSettings,
    progress: Progress | None,
) -> tuple[Record, ...]:
    file = _open(run, protocol(model, benchmark, settings), settings)
    known = {} if file is None else file.records
    done = {id: record for id, record in known.items() if not record.error}
    sampling = _sampling(benchmark, settings)
    if progress is not None:
        progress(run, len(done), len(items))

    def answers(asked: Sequence[Item]) -> Sequence[Answer]:
        return model.generate([item.conversation for item in asked], sampling, batch_size=settings.batch_size)

    for batch in _batches(items, _ASKED_TOGETHER):
        if all(item.id in done for item in batch):
            continue
        start = time.perf_counter()
        replies = made_or_refused(answers, batch)
        seconds = (time.perf_counter() - start) / len(batch)
        records = [
            _failed(item, reply)
            if isinstance(reply, UnreadableMedium)
            else _record(item, reply.text, benchmark.score(item, reply.text, box_reader(model, item)), seconds)
            for item, reply in zip(batch, replies, strict=True)
            if item.id not in done
        ]
        if file is not None:
            file.append([record for record in records if record != known.get(record.id)])
        done.update((record.id, record) for record in records)
        if progress is not None:
            progress(run, len(done), len(items))
    return tuple(done[item.id] for item in items)


def _computed(items: Sequence[Item], benchmark: Benchmark) -> dict[str, tuple[Record, ...]]:
    """The baselines that need no model."""
    runs = {}
    if constants := benchmark.most_frequent():
        runs[MOST_FREQUENT] = tuple(_constant(item, constants, benchmark) for item in items if item.type in constants)
    for name, marks in benchmark.expectations().items():
        runs[name] = tuple(_record(item, "", marks[item.id]) for item in items if item.id in marks)
    return runs


def _constant(item: Item, constants: Mapping[str, Any], benchmark: Benchmark) -> Record:
    constant = constants[item.type]
    if isinstance(constant, tuple):
        return _record(item, _written(constant), benchmark.score(item, "", lambda _: constant))
    return _record(item, constant, benchmark.score(item, constant, lambda _: None))


def _record(item: Item, reply: str, score: float, seconds: float = 0.0) -> Record:
    question = question_text(item.conversation)
    return Record(item.id, item.type, item.group, question, _written(item.truth), reply, float(score), float(seconds))


def _failed(item: Item, error: UnreadableMedium) -> Record:
    return replace(_record(item, "", 0.0), error=str(error))


def _written(truth: str | tuple[float, ...]) -> str:
    return truth if isinstance(truth, str) else "[" + ", ".join(f"{c:.3f}" for c in truth) + "]"


def _keep(run: str, records: tuple[Record, ...], benchmark: Benchmark, settings: EvaluationSettings) -> tuple[Record, ...]:
    file = _open(run, {"benchmark": benchmark.name, "benchmark_config": _plain(getattr(benchmark, "config", None))}, settings)
    if file is not None:
        file.append([record for record in records if record.id not in file.records])
    return records


def _open(run: str, key: dict[str, Any], settings: EvaluationSettings) -> RecordFile | None:
    return None if settings.folder is None else RecordFile(Path(settings.folder) / f"{run}.jsonl", {"run": run, **key})


def _sampling(benchmark: Benchmark, settings: EvaluationSettings) -> Sampling:
    return settings.sampling or Sampling(max_new_tokens=benchmark.max_new_tokens)


def _batches(items: Sequence[Item], size: int) -> Iterable[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _plain(config: Any) -> Any:
    return to_dict(config) if config is not None else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
