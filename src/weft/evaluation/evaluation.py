"""The outcome of an evaluation: every answer of every run, and the scores that follow from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from weft.core.errors import DataError
from weft.evaluation.records import Record, read_records
from weft.evaluation.statistics import Estimate, Marks, of_type, over_types

MODEL, BLIND, TEXT_ONLY, MOST_FREQUENT = "model", "blind", "text_only", "most_frequent"

RUN_TITLES = {
    MODEL: "with the picture",
    BLIND: "pictures shuffled",
    TEXT_ONLY: "text-only model",
    MOST_FREQUENT: "most frequent answer",
}


@dataclass(frozen=True)
class Evaluation:
    """Records by run, in the benchmark's order.

    `runs["model"]` is the model itself; the others are baselines on the same items. A baseline may cover only some types;
    it then has no mean over types.
    """

    benchmark: str
    runs: Mapping[str, tuple[Record, ...]]
    titles: Mapping[str, str] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def types(self) -> tuple[str, ...]:
        """Question types in the benchmark's order."""
        return tuple(dict.fromkeys(record.type for record in self.runs[MODEL]))

    @property
    def baselines(self) -> tuple[str, ...]:
        """Every run but the model's, the standard ones first."""
        standard = [name for name in (TEXT_ONLY, BLIND, MOST_FREQUENT) if name in self.runs]
        return (*standard, *(name for name in self.runs if name != MODEL and name not in standard))

    def title(self, type: str) -> str:
        """The name of a question type for people."""
        return self.titles.get(type, type.replace("_", " "))

    def by_type(self, type: str, run: str = MODEL) -> Estimate | None:
        """The score of a type; None where the run does not cover it."""
        return self._by_type.get((run, type))

    def mean(self, run: str = MODEL) -> Estimate | None:
        """The mean over types; None where the run leaves a type out."""
        if run not in self._means:
            marks = self._marks(run)
            self._means[run] = over_types(marks) if set(marks) == set(self.types) else None
        return self._means[run]

    def gain(self, over: str) -> Estimate | None:
        """How far the model lies above a baseline on the same questions (paired), as a mean over types."""
        other = {record.id: record.score for record in self.runs[over]}
        if any(record.id not in other for record in self.runs[MODEL]):
            return None
        paired = [replace(record, score=record.score - other[record.id]) for record in self.runs[MODEL]]
        return over_types(_marks(paired), differences=True)

    def failed(self, run: str = MODEL) -> tuple[Record, ...]:
        """The questions of a run that could not be asked, as a medium of theirs cannot be read; they count as wrong."""
        return tuple(record for record in self.runs[run] if record.error)

    @property
    def seconds(self) -> float:
        """Time that the model took to answer."""
        return sum(record.seconds for record in self.runs[MODEL])

    def summary(self) -> dict[str, Any]:
        """Scores as plain values, for JSON."""
        return {
            "benchmark": self.benchmark,
            "questions": len(self.runs[MODEL]),
            "failed": {run: len(self.failed(run)) for run in self.runs},
            "seconds": round(self.seconds, 3),
            "mean": {run: _plain(self.mean(run)) for run in self.runs},
            "types": {t: {run: _plain(self.by_type(t, run)) for run in self.runs} for t in self.types},
            "titles": dict(self.titles),
            "protocol": dict(self.protocol),
            "notes": dict(self.notes),
        }

    def save(self, folder: str | Path) -> Path:
        """Write `evaluation.json` beside the records; returns its path."""
        path = Path(folder) / "evaluation.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".json.partial")
        temporary.write_text(json.dumps(self.summary(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(path)
        return path

    @cached_property
    def _by_type(self) -> dict[tuple[str, str], Estimate]:
        return {(run, type): of_type(marks) for run in self.runs for type, marks in self._marks(run).items()}

    @cached_property
    def _means(self) -> dict[str, Estimate | None]:
        return {}

    def _marks(self, run: str) -> dict[str, Marks]:
        if run not in self.runs:
            raise DataError(f"this evaluation has no run {run!r}; it has {', '.join(self.runs)}")
        return _marks(self.runs[run])


def load_evaluation(folder: str | Path) -> Evaluation:
    """The evaluation that `save` and the runner left in a folder: `evaluation.json` and one `<run>.jsonl` a run."""
    folder = Path(folder)
    path = folder / "evaluation.json"
    if not path.is_file():
        raise DataError(f"{folder} holds no evaluation.json; run the evaluation first")
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        runs = tuple(saved["mean"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not an evaluation ({error!r}); run the evaluation again") from None
    if absent := [run for run in runs if not (folder / f"{run}.jsonl").is_file()]:
        raise DataError(f"{folder} lacks the answers of {', '.join(absent)}; run the evaluation again")
    records = {run: read_records(folder / f"{run}.jsonl") for run in runs}
    return Evaluation(saved["benchmark"], records, saved["titles"], saved["protocol"], saved["notes"])


def _marks(records: Sequence[Record]) -> dict[str, Marks]:
    """The marks by type, in the order of the records."""
    marks: dict[str, tuple[list[float], list[str]]] = {}
    for record in records:
        values, groups = marks.setdefault(record.type, ([], []))
        values.append(record.score)
        groups.append(record.group)
    return {type: Marks(tuple(values), tuple(groups)) for type, (values, groups) in marks.items()}


def _plain(estimate: Estimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    return {name: round(value, 6) for name, value in asdict(estimate).items()}
