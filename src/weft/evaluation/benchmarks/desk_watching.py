"""The desk's held-out questions about films, of scans of handwriting that no training ever saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from weft.core.errors import ConfigError
from weft.data.desk.clips import NUM_FRAMES
from weft.data.desk.scans import Split
from weft.data.desk.watching import watching
from weft.evaluation.asked import commonest_answers, exact, items_of
from weft.evaluation.benchmark import Benchmark, Item, ReadBox, Truth
from weft.evaluation.evaluation import BLIND, MODEL

TITLES = {
    MODEL: "with the film",
    BLIND: "films shuffled",
    "direction": "Which way does it move?",
    "moving_ink": "Ink of what moves",
    "moving_digit": "Which digit moves?",
    "first_ink": "Ink of what comes first",
    "last_ink": "Ink of what comes last",
    "order": "Does one come before another?",
    "count": "Count the digits",
    "narration": "Tell what happens, exact",
}
NOTES = {
    "held_out": "No scan of handwriting, no layout that a film starts from and no random draw of these questions occurs in "
    "training or validation.",
}


class DeskWatchingBenchmark(Benchmark):
    """`num_per_type` held-out questions of each type, each about a film of its own. Answers are marked by exact match."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Benchmark.Config):
        num_per_type: int = 100
        types: tuple[str, ...] = ()  # empty: every type
        split: str = "test"
        seed: int = 0
        num_frames: int = NUM_FRAMES
        canvas: int = 64

        def __post_init__(self) -> None:
            if self.num_per_type < 2:
                raise ConfigError(f"the watching benchmark needs at least 2 questions per type, got {self.num_per_type}")

        def build(self) -> DeskWatchingBenchmark:
            return DeskWatchingBenchmark(self)

    name = "desk-watching"
    max_new_tokens = 48
    titles = TITLES
    notes = NOTES

    def __init__(self, config: Config) -> None:
        self.config = config

    def items(self) -> tuple[Item, ...]:
        return self._items

    def score(self, item: Item, reply: str, read_box: ReadBox) -> float:
        return exact(item, reply)

    def most_frequent(self) -> Mapping[str, Truth]:
        return commonest_answers(watching("train"), self.config.types)

    @cached_property
    def _items(self) -> tuple[Item, ...]:
        c = self.config
        return items_of(watching(cast(Split, c.split), c.seed, c.num_frames, c.canvas).items(c.num_per_type, c.types))
