"""The desk's held-out questions about digits that are said, by speakers that no training ever heard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from weft.core.errors import ConfigError
from weft.data.desk.listening import Kind, listening
from weft.data.desk.scans import Split
from weft.data.desk.speech import CLIP_SECONDS
from weft.evaluation.asked import commonest_answers, exact, items_of
from weft.evaluation.benchmark import Benchmark, Item, ReadBox, Truth
from weft.evaluation.evaluation import BLIND, MODEL

TITLES = {
    MODEL: "as it is heard",
    BLIND: "sounds shuffled",
    "first": "First digit",
    "last": "Last digit",
    "count": "Count the digits",
    "presence": "Is a digit said?",
    "order": "Is one said before another?",
    "transcript": "Write all down",
    "voice": "High or low voice",
    "shown": "Is what is said on the desk?",
    "ink": "Ink of what is said",
}
NOTES = {
    "held_out": "No speaker, no row of two or three digits and no random draw of these questions occurs in training or "
    "validation; nor does a scan or layout, where there are pictures.",
}


class DeskListeningBenchmark(Benchmark):
    """`num_per_type` held-out questions of each type of a kind: about "speech", or about "speech_and_picture", where each takes
    both. Answers are marked by exact match."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Benchmark.Config):
        num_per_type: int = 100
        types: tuple[str, ...] = ()  # empty: every type of the kind
        kind: Kind = "speech"
        split: str = "test"
        seed: int = 0
        seconds: float = CLIP_SECONDS

        def __post_init__(self) -> None:
            if self.num_per_type < 2:
                raise ConfigError(f"the listening benchmark needs at least 2 questions per type, got {self.num_per_type}")

        def build(self) -> DeskListeningBenchmark:
            return DeskListeningBenchmark(self)

    name = "desk-listening"
    max_new_tokens = 24
    titles = TITLES
    notes = NOTES

    def __init__(self, config: Config) -> None:
        self.config = config

    def items(self) -> tuple[Item, ...]:
        return self._items

    def score(self, item: Item, reply: str, read_box: ReadBox) -> float:
        return exact(item, reply)

    def most_frequent(self) -> Mapping[str, Truth]:
        return commonest_answers(listening("train", 0, self.config.kind), self.config.types)

    @cached_property
    def _items(self) -> tuple[Item, ...]:
        c = self.config
        return items_of(listening(cast(Split, c.split), c.seed, c.kind, c.seconds).items(c.num_per_type, c.types))
