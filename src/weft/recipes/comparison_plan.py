"""What a comparison trains: runs that its rows share, then the own stages of every row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from weft.core.errors import ConfigError
from weft.core.interfaces import System
from weft.data.desk.questions import QUESTIONS
from weft.data.media_transform import MediaTransform
from weft.data.tokenizers import Tokenizer
from weft.recipes.comparison_candidates import FUSIONS, PLACES, Part, parts_of_room, placed
from weft.recipes.comparison_fusions import FusionForm, family
from weft.recipes.desk import BASELINE, TOWER, desk, tokenizer
from weft.systems.dual_encoder import DualEncoder
from weft.systems.multimodal_lm import MultimodalLM, MultimodalSystem
from weft.training.stage import Recipe, Stage
from weft.training.trainer import continues

STREAM = "image"
STEPS = 1400
QUICK_STEPS = 1000
QUESTIONS_PER_TYPE = 100
QUICK_QUESTIONS_PER_TYPE = 50


@dataclass(frozen=True)
class Candidate:
    """One of those that are compared.

    `recipe` is the whole of a row, shared stages first. `counted` names the module whose parameters the table shows, "" the
    whole system, less those of the system `without`; `family` is said beside the name.
    """

    name: str
    recipe: Recipe
    seeds: tuple[int, ...]
    counted: str = ""
    family: str = ""
    without: System.Config | None = None


@dataclass(frozen=True)
class Plan(ABC):
    """What a comparison trains and asks.

    `seeds` None: what each candidate is worth; `only` None: all candidates.

    Raises: ConfigError for fewer than one step, no seed, and candidates that are not there.
    """

    room: str
    steps: int
    seeds: tuple[int, ...] | None = None
    only: Sequence[str] | None = None
    questions_per_type: int = QUESTIONS_PER_TYPE

    def __post_init__(self) -> None:
        if self.steps < 1 or self.seeds == ():
            raise ConfigError(f"a comparison takes 1 step and 1 seed or more, got {self.steps} and {self.seeds}")
        assert self.candidates

    @property
    @abstractmethod
    def candidates(self) -> tuple[Candidate, ...]:
        """Those that take part."""

    @property
    @abstractmethod
    def left_out(self) -> Mapping[str, str]:
        """Those that cannot be compared, and why."""

    @property
    @abstractmethod
    def shared(self) -> tuple[Recipe, ...]:
        """Runs of their own whose stages rows start from, each of which may begin with stages of runs before it."""

    @property
    @abstractmethod
    def text_only(self) -> str:
        """The shared stage whose model answers without pictures."""

    @property
    @abstractmethod
    def budget(self) -> str:
        """What a row is trained, in words."""

    @property
    def command(self) -> str:
        """What trains and asks the same."""
        words = [f"weft compare {self.room} --steps {self.steps} --questions {self.questions_per_type}"]
        if self.seeds is not None:
            first = self.seeds == tuple(range(len(self.seeds)))
            words.append(f"--seeds {len(self.seeds) if first else ','.join(map(str, (*self.seeds, '')))}")
        if self.only:
            words.append(f"--only {','.join(self.only)}")
        return " ".join(words)

    @abstractmethod
    def tokenizer(self, candidate: Candidate | None = None) -> Tokenizer:
        """The tokenizer of a candidate's row, or of the shared runs."""

    @property
    def types(self) -> tuple[str, ...]:
        """The question types that are asked."""
        return tuple(QUESTIONS)

    @property
    def rows(self) -> tuple[tuple[Candidate, int], ...]:
        """Candidate and seed of every row: the first seed of every candidate, then the second ones."""
        pairs = [(candidate, seed) for candidate in self.candidates for seed in candidate.seeds]
        return tuple(sorted(pairs, key=lambda pair: pair[1]))

    @property
    def shared_stages(self) -> tuple[Stage, ...]:
        """All stages of the shared runs, each once."""
        return tuple({stage.name: stage for run in self.shared for stage in run.stages}.values())

    def own_stages(self, candidate: Candidate) -> tuple[Stage, ...]:
        """The stages that a row trains."""
        shared = {stage.name for stage in self.shared_stages}
        return tuple(stage for stage in candidate.recipe.stages if stage.name not in shared)

    def steps_of(self, candidate: Candidate) -> int:
        """Of all stages that a row trains."""
        return sum(stage.steps or 0 for stage in self.own_stages(candidate))

    @property
    def pieces(self) -> tuple[tuple[Stage, ...], ...]:
        """What is trained in turn: the shared stages, then those of every row."""
        own = {candidate.name: self.own_stages(candidate) for candidate in self.candidates}
        return (self.shared_stages, *(own[candidate.name] for candidate, _ in self.rows))

    @property
    def num_questions(self) -> int:
        return self.questions_per_type * len(self.types)


@dataclass(frozen=True)
class PartsPlan(Plan):
    """Parts of one room, each in its place of the desk's recipe: stages that no part changes are shared.

    `steps` are the last stage's; earlier stages keep the recipe's number, at most as many.
    """

    steps: int = STEPS

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
        recipe = self.recipe
        return tuple(
            Candidate(
                part.name,
                _with(recipe, part),
                part.seeds if self.seeds is None else self.seeds,
                counted=PLACES[self.room],
                family=family(part.config.fusions) if isinstance(part.config, FusionForm) else "",
                without=recipe.system if self.room == FUSIONS else None,
            )
            for part in parts_of_room(self.room, recipe, self.only)[0]
        )

    @property
    def left_out(self) -> Mapping[str, str]:
        return parts_of_room(self.room, self.recipe)[1]

    @property
    def shared(self) -> tuple[Recipe, ...]:
        recipe = self.recipe
        changed: set[str] = set()
        for index, stage in enumerate(recipe.stages):
            before = continues(recipe, index) and recipe.stages[index - 1].name in changed
            if before or self.room in _rooms_in(stage) or changed.intersection(stage.takes):
                changed.add(stage.name)
        return (replace(recipe, stages=tuple(s for s in recipe.stages if s.name not in changed)),)

    @property
    def text_only(self) -> str:
        return BASELINE

    @property
    def budget(self) -> str:
        return f"{self.steps:,} steps in the last stage"

    def tokenizer(self, candidate: Candidate | None = None) -> Tokenizer:
        return tokenizer()


def picture_tokens(system: MultimodalSystem.Config, transform: MediaTransform) -> int:
    """What a picture of the desk becomes, wherever it stands."""
    stream = system.streams[STREAM]
    blank = np.zeros((TOWER.image_size, TOWER.image_size, 3), np.uint8)
    return stream.projector.num_tokens(transform.open(blank, stream.encoder.layout()).layout)


def _with(recipe: Recipe, part: Part) -> Recipe:
    return replace(recipe, stages=tuple(placed(stage, part.config) for stage in recipe.stages))


def _rooms_in(stage: Stage) -> tuple[str, ...]:
    """The rooms whose candidates have a place in a stage."""
    if isinstance(stage.system, DualEncoder.Config):
        return ("encoders",)
    return tuple(PLACES) if isinstance(stage.system, MultimodalLM.Config) and STREAM in stage.system.streams else ()
