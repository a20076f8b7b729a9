"""The desk's held-out questions: real handwriting from scans that no training ever saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import cast

from weft.core.errors import ConfigError
from weft.data.desk.questions import QUESTIONS
from weft.data.desk.scans import Split
from weft.data.desk.scoring import most_frequent_answers
from weft.data.desk.scoring import score as desk_score
from weft.data.desk.world import Desk, DeskItem
from weft.evaluation.benchmark import Benchmark, Item, ReadBox, Truth

RANDOM_COLOUR = "random_colour_present"

TITLES = {
    "name_single": "Name the digit of an ink",
    "leftmost": "Leftmost digit",
    "rightmost": "Rightmost digit",
    "largest": "Largest digit",
    "count": "Count the digits",
    "count_colour": "Count things of an ink",
    "colour_of_digit": "Ink of a digit",
    "presence": "Is a digit there?",
    "left_of": "Is one left of another?",
    "read": "Read left to right",
    "sum": "Add two digits",
    "sum_reasoning": "Add all, step by step",
    "caption_short": "Short caption, exact",
    "caption_detailed": "Detailed caption, facts",
    "box": "Draw the box (IoU ≥ 0.5)",
    "refer": "Digit in a given box",
}

NOTES = {
    "held_out": "No scan of handwriting, no layout and no random draw of these questions occurs in training or validation.",
    RANDOM_COLOUR: "naming the ink of any digit in the picture, which solves part of one question type without reading",
}


class DeskBenchmark(Benchmark):
    """`num_per_type` held-out questions of each type; `left_of` comes in mirrored pairs.

    Marks: boxes count from IoU 0.5 on, detailed captions by the share of right facts, worked sums by their last number,
    all else by exact match without regard to case, spaces and a final period.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Benchmark.Config):
        num_per_type: int = 100
        types: tuple[str, ...] = tuple(QUESTIONS)
        split: str = "test"
        seed: int = 0
        canvas: int = 64

        def __post_init__(self) -> None:
            if self.num_per_type < 2:
                raise ConfigError(f"the desk benchmark needs at least 2 questions per type, got {self.num_per_type}")

        def build(self) -> DeskBenchmark:
            return DeskBenchmark(self)

    name = "desk"
    max_new_tokens = 96
    titles = TITLES
    notes = NOTES

    def __init__(self, config: Config) -> None:
        self.config = config

    def items(self) -> tuple[Item, ...]:
        return self._items

    def score(self, item: Item, reply: str, read_box: ReadBox) -> float:
        return desk_score(cast(DeskItem, item.subject), reply, read_box)

    def most_frequent(self) -> Mapping[str, Truth]:
        return _most_frequent()

    def expectations(self) -> Mapping[str, Mapping[str, float]]:
        """Naming the ink of any digit in the picture solves a good part of `colour_of_digit`: its expected mark."""
        asked = [item for item in self._items if item.type == "colour_of_digit"]
        return {RANDOM_COLOUR: {item.id: 1.0 / len(item.subject.scene.digits) for item in asked}} if asked else {}

    @cached_property
    def _items(self) -> tuple[Item, ...]:
        settings = self.config
        desk = Desk(cast(Split, settings.split), settings.seed, canvas=settings.canvas)
        items: list[Item] = []
        group, scene = "", None
        for item in desk.items(settings.num_per_type, settings.types):
            if item.scene is not scene:  # mirrored questions follow each other and share the scene
                group, scene = item.id, item.scene
            items.append(Item(item.id, item.type, group, item.conversation, item.truth, item))
        return tuple(items)


@cache
def _most_frequent() -> Mapping[str, Truth]:
    return most_frequent_answers()
