"""What a report shows, as plain values: whoever trains and measures fills it in, the drawing code only reads it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from weft.core.errors import DataError
from weft.evaluation.evaluation import Evaluation

TRAINED, FROZEN = "trained", "frozen"
PartState = Literal["trained", "frozen"]


@dataclass(frozen=True)
class Part:
    """A part of the model: its name, what it is in a few words, and its parameters."""

    name: str
    about: str
    parameters: int


@dataclass(frozen=True)
class StageFacts:
    """One stage of training; `parts` says by part name whether it was trained or frozen, a part left out was not there.

    Units: `seconds` of wall clock, None where it was not measured.
    """

    name: str
    title: str
    parts: Mapping[str, PartState]
    steps: int
    samples: int | None = None
    seconds: float | None = None
    trained_parameters: int | None = None


@dataclass(frozen=True)
class Weave:
    """How a picture and a question become an answer, for one stream.

    Shapes: `picture` (height, width, 3) uint8; `grid` patch rows and columns of the encoder.
    """

    picture: np.ndarray
    grid: tuple[int, int]
    encoder: Part
    projector: Part
    language_model: Part
    num_media_tokens: int
    question: str
    num_question_tokens: int
    answer: str
    stages: tuple[StageFacts, ...] = ()

    @property
    def parameters(self) -> int:
        """Parameters of the model that answers."""
        return self.encoder.parameters + self.projector.parameters + self.language_model.parameters


@dataclass(frozen=True)
class Curve:
    """Losses of one stage: (step, loss) pairs of training and of validation."""

    stage: str
    title: str
    train: tuple[tuple[float, float], ...]
    validation: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Exhibit:
    """A held-out question with its picture; boxes in fractions of the picture."""

    picture: np.ndarray
    type: str
    question: str
    truth: str
    reply: str
    score: float
    truth_box: tuple[float, ...] | None = None
    reply_box: tuple[float, ...] | None = None
    asked_box: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Gaze:
    """Where the model looked while it wrote an answer.

    Shapes: `maps` [answer tokens, rows, cols], non-negative attention over the picture. `words` are the answer's tokens as
    text. `difference` is the largest difference between the fast path's attention output or logits and the dense reference's.
    """

    picture: np.ndarray
    question: str
    words: tuple[str, ...]
    maps: np.ndarray
    truth: str = ""
    score: float | None = None
    difference: float | None = None

    def __post_init__(self) -> None:
        if self.maps.ndim != 3 or len(self.maps) != len(self.words):
            raise DataError(f"attention maps need [words, rows, columns], got {self.maps.shape} for {len(self.words)} words")


@dataclass(frozen=True)
class RunFacts:
    """The circumstances of a run, for the header and the footer. Units: seconds, bytes."""

    title: str
    recipe: str = ""
    training_seconds: float | None = None
    evaluation_seconds: float | None = None
    peak_memory_bytes: int | None = None
    seeds: tuple[int, ...] = ()
    hardware: str = ""
    commit: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    date: str = ""


@dataclass(frozen=True)
class ReportContent:
    """Everything that a report shows. What is absent leaves its section with a sentence that says so.

    `evaluation` is of the model that the report shows; `by_seed` holds the evaluations of all seeds, this one included.
    """

    facts: RunFacts
    evaluation: Evaluation
    by_seed: Mapping[int, Evaluation] = field(default_factory=dict)
    weave: Weave | None = None
    curves: Sequence[Curve] = ()
    exhibits: Sequence[Exhibit] = ()
    gazes: Sequence[Gaze] = ()


def read_curves(path: str | Path, titles: Mapping[str, str] | None = None) -> tuple[Curve, ...]:
    """The curves of a run's `metrics.jsonl`, stages in the order in which they appear.

    A resumed run writes the steps after its checkpoint again; the later line counts. A torn last line is left out.
    """
    stages: dict[str, dict[str, dict[float, float]]] = {}
    for line in _json_lines(Path(path)):
        if "stage" in line and line.get("loss") is not None:
            kinds = stages.setdefault(str(line["stage"]), {"train": {}, "validation": {}})
            kinds.setdefault(str(line.get("kind", "train")), {})[float(line["step"])] = float(line["loss"])
    return tuple(
        Curve(name, (titles or {}).get(name, name), _points(kinds["train"]), _points(kinds["validation"]))
        for name, kinds in stages.items()
    )


def _points(values: Mapping[float, float]) -> tuple[tuple[float, float], ...]:
    return tuple(sorted((step, loss) for step, loss in values.items() if np.isfinite(loss)))


def _json_lines(path: Path) -> Iterable[dict]:
    if not path.is_file():
        raise DataError(f"{path} does not exist; the trainer writes metrics.jsonl into the run folder")
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                return
            raise DataError(f"{path}, line {number}: not JSON ({error})") from None
