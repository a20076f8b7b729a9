"""Benchmarks of the desk whose answers are words: items, marks, and the commonest answers of training."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from weft.core.errors import ConfigError
from weft.data.desk.asking import Asking
from weft.data.desk.scoring import normalise
from weft.evaluation.benchmark import Benchmark, Item, ReadBox, Truth

_TRAINING_ITEMS = 200


class AskedBenchmark(Benchmark):
    """`num_per_type` questions of each type, each about media of its own, marked by exact match."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Benchmark.Config):
        num_per_type: int = 100
        types: tuple[str, ...] = ()  # empty: every type there is
        split: str = "test"
        seed: int = 0

        def __post_init__(self) -> None:
            if self.num_per_type < 2:
                raise ConfigError(f"a benchmark of the desk needs at least 2 questions per type, got {self.num_per_type}")

        @abstractmethod
        def asked(self) -> Asking[Any]:
            """What asks the questions."""

        @abstractmethod
        def trained(self) -> Asking[Any]:
            """What asks the same types in training."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def items(self) -> tuple[Item, ...]:
        return self._items

    def score(self, item: Item, reply: str, read_box: ReadBox) -> float:
        """Full marks for the truth, without regard to case, spaces and a final period."""
        return float(normalise(reply) == normalise(str(item.truth)))

    def most_frequent(self) -> Mapping[str, Truth]:
        training = self.config.trained()
        counts = {type: Counter(training.truths(type, _TRAINING_ITEMS)) for type in self.config.types or training.questions}
        return {type: count.most_common(1)[0][0] for type, count in counts.items()}

    @cached_property
    def _items(self) -> tuple[Item, ...]:
        asked = self.config.asked().items(self.config.num_per_type, self.config.types)
        return tuple(Item(item.id, item.type, item.id, item.conversation, item.truth, item) for item in asked)
