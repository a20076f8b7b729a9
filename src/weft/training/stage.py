"""A stage and a recipe: what is trained, on what, how, in which order. Data, not code."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from weft.core import config
from weft.core.errors import ConfigError, unknown_name
from weft.core.interfaces import Objective, System
from weft.data.dataset import Dataset
from weft.data.processor import Processor
from weft.training.targets import ClusterTargets

_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True, kw_only=True)
class Optimizer(config.Config):
    """AdamW, LAMB, or Muon on the matrices of hidden layers with AdamW on the rest.

    `learning_rate` is AdamW's or LAMB's peak; `matrix_rate` Muon's. `rates` multiplies the rate of the parameters that match a
    pattern. `layer_decay` names towers of blocks: a block's rate is multiplied once for itself and once for every block above
    it, that of the embeddings below once more, and what follows the last block keeps its rate.

    Weight decay leaves out parameters with fewer than two dimensions and those that match `weight_decay_except`; LAMB scales
    the step of decayed parameters only. `clip_norm` bounds the norm of all gradients together; before it, `adaptive_clip`
    bounds that of each unit to a share of the unit's weights (`adaptive_clip_except`: name patterns).
    """

    name: Literal["adamw", "lamb", "muon"] = "adamw"
    learning_rate: float = 1e-3
    matrix_rate: float = 0.02
    matrices: tuple[str, ...] = ("*blocks.*", "*projector.*")
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    weight_decay_except: tuple[str, ...] = ()
    clip_norm: float | None = 1.0
    adaptive_clip: float | None = None
    adaptive_clip_except: tuple[str, ...] = ()
    rates: Mapping[str, float] = field(default_factory=dict)
    layer_decay: Mapping[str, float] = field(default_factory=dict)  # {name of a tower: what a layer multiplies the rate by}

    def __post_init__(self) -> None:
        for name, value in {"learning_rate": self.learning_rate, "matrix_rate": self.matrix_rate, **self.rates}.items():
            if not 0 <= value < math.inf:
                raise ConfigError(f"optimizer: the rate {name} must be 0 or above, got {value}")
        for tower, decay in self.layer_decay.items():
            if not 0 < decay <= 1:
                raise ConfigError(
                    f"optimizer: layer_decay of {tower!r} multiplies rates and lies above 0, at most 1, got {decay}"
                )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ConfigError(f"optimizer: clip_norm must be above 0, got {self.clip_norm}; none clips nothing")


@dataclass(frozen=True, kw_only=True)
class Schedule(config.Config):
    """Linear warm-up, then a decay to `final` times the peak over the remaining steps.

    `warmup` below 1 is a share of the steps (rounded up), otherwise a number of steps. "trapezoid" stays at the peak and falls
    linearly over the last `cooldown` share.
    """

    decay: Literal["cosine", "linear", "constant", "trapezoid"] = "cosine"
    warmup: float = 0.03
    final: float = 0.0
    cooldown: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < math.inf:
            raise ConfigError(f"schedule: warmup is a share below 1 or a number of steps, got {self.warmup}")


@dataclass(frozen=True, kw_only=True)
class Stage(config.Config):
    """One stage of a recipe.

    `train` lists name patterns (`fnmatch`; `!` excludes), each of which must match a parameter. Where `system` differs from
    the stage before, it is built anew and `takes` maps source patterns of earlier stages to target prefixes:
    `{"tower": {"media.*": "streams.image.encoder."}}`. Every target key is filled or matches a pattern in `new`.
    Position tables that match a pattern in `interpolates` are taken at another grid, bicubically.
    `targets` are found before the first step, and the data is read with them.
    Units: `batch_size` samples per optimizer step, `micro_batch_size` per forward (None: all at once), `max_tokens` per sample.
    """

    name: str
    title: str = ""
    system: System.Config
    train: tuple[str, ...]
    takes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # {earlier stage: {pattern: target prefix}}
    new: tuple[str, ...] = ()
    interpolates: tuple[str, ...] = ()
    processor: Processor.Config
    data: Dataset.Config
    validation: Dataset.Config | None = None
    targets: ClusterTargets | None = None
    objective: Objective.Config
    batch_size: int
    micro_batch_size: int | None = None
    steps: int | None = None
    epochs: float | None = None
    max_tokens: int = 2048
    packing: bool = False
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    precision: Literal["fp32", "bf16"] = "bf16"

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ConfigError(
                f"stage {self.name!r} takes either steps or epochs, got steps={self.steps}, epochs={self.epochs}; "
                "set one and the other to none"
            )
        for name in ("batch_size", "micro_batch_size", "steps", "epochs", "max_tokens"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"stage {self.name!r}: {name} must be above 0, got {value}")
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"a stage's name is that of its folder: letters, digits, '_', '-' and '.', got {self.name!r}")


@dataclass(frozen=True, kw_only=True)
class Recipe(config.Config):
    """A published system as data: its stages in order; the last stage's system and processor are what is served."""

    name: str
    size: str = ""
    paper: str = ""
    about: str = ""
    stages: tuple[Stage, ...]

    @property
    def system(self) -> System.Config:
        return self.stages[-1].system

    @property
    def processor(self) -> Processor.Config:
        return self.stages[-1].processor

    def stage(self, name: str) -> Stage:
        """The stage of a name; ConfigError names the nearest ones."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise unknown_name("stage", name, [s.name for s in self.stages])
