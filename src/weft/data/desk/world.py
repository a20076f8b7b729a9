"""The desk's public face: deterministic streams of conversations and of evaluation items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from weft.core.conversation import Conversation, Message
from weft.core.errors import ConfigError, DataError
from weft.data.desk.conversations import RenderBox, as_caption, as_text, ask_turns, question_conversation, with_picture
from weft.data.desk.dice import Dice
from weft.data.desk.draw import draw
from weft.data.desk.questions import QUESTIONS, Question, asker, left_of_mirrored
from weft.data.desk.scans import Split, split_code
from weft.data.desk.scene import MAX_DIGITS, MAX_SHAPES, Box, Scene, sample_scene

Kind = Literal["dialogue", "text", "caption"]

EVEN_MIX: dict[str, float] = dict.fromkeys(QUESTIONS, 1.0)
"""Every question type equally often."""

_SCENE, _WORDS, _ITEMS = 0, 1, 2
_TRIES = 1000


@dataclass(frozen=True)
class DeskItem:
    """One evaluation question: the conversation to continue, the truth, the question type, and a stable id."""

    conversation: Conversation
    truth: str | Box
    type: str
    id: str
    scene: Scene


@dataclass(frozen=True)
class Desk:
    """A stream of conversations about drawn scenes, indexed by any non-negative integer.

    `desk[i]` depends on split, seed, i and the fields below alone, on every machine. `kind` is `dialogue` (a picture
    and several turns), `text` (the scene written out in place of the picture, for a language stage; needs `render`) or
    `caption` (a picture and a caption, for contrastive training).

    Held-out means that train, validation and test share no scan, no layout and no stream of draws, for all seeds:
    scans are partitioned, layouts are partitioned by `layout_class`, and the split is the first entry of every random
    key. The templates of the questions are shared on purpose: a held-out wording is a new draw of (scene, template,
    names), not a sentence form that nobody taught, which would measure the language model's general English.
    """

    split: Split
    seed: int = 0
    kind: Kind = "dialogue"
    num_turns: int = 8
    conversations_per_scene: int = 1
    mix: Mapping[str, float] | None = None
    min_digits: int = 1
    max_digits: int = MAX_DIGITS
    max_shapes: int = MAX_SHAPES
    canvas: int = 64
    render: RenderBox | None = None

    def __post_init__(self) -> None:
        split_code(self.split)
        if self.kind not in ("dialogue", "text", "caption"):
            raise ConfigError(f"unknown desk kind {self.kind!r}; known: dialogue, text, caption")
        if self.kind == "text" and self.render is None:
            raise ConfigError("a desk of kind 'text' writes boxes as text; pass render=, the render of a box format")
        if self.num_turns < 1:
            raise ConfigError(f"a desk conversation needs at least 1 turn, got num_turns={self.num_turns}")
        for type in self.mix or ():
            asker(type)

    def scene(self, index: int) -> Scene:
        """The scene of conversation `index`; neighbours share it where a scene has several conversations."""
        place = index // self.conversations_per_scene
        return _scene(self.split, self.seed, place, self.max_digits, self.max_shapes, self.min_digits)

    def picture(self, index: int) -> np.ndarray:
        """The drawing of conversation `index`: (canvas, canvas, 3) uint8, read-only."""
        return _picture(self.scene(index), self.canvas)

    def __getitem__(self, index: int) -> Conversation:
        """Conversation `index`. Raises: IndexError where the index is negative."""
        scene = self.scene(index)
        return Conversation(self._messages(scene, index), id=str(index), source=self._source)

    def __iter__(self) -> Iterator[Conversation]:
        """The endless stream from index 0."""
        index = 0
        while True:
            yield self[index]
            index += 1

    def questions(self, index: int) -> list[Question]:
        """The turns of conversation `index`; at least one."""
        return self._turns(self.scene(index), index)

    def items(self, num_per_type: int, types: Sequence[str] = tuple(QUESTIONS)) -> list[DeskItem]:
        """Evaluation items, `num_per_type` of each type in a fixed order; `left_of` comes in mirrored pairs.

        Every type has scenes of its own, and no scene of a conversation of this desk is reused.
        """
        return [item for type in types for item in self._items_of(type, num_per_type)]

    def _items_of(self, type: str, count: int) -> list[DeskItem]:
        ask, number = asker(type), tuple(QUESTIONS).index(type)
        items: list[DeskItem] = []
        index = 0
        while len(items) < count:
            dice = self._dice(_ITEMS, index, number)
            scene = sample_scene(dice, self.split, self.max_digits, self.max_shapes, self.min_digits)
            asked = left_of_mirrored(scene, dice) if type == "left_of" else (ask(scene, dice),)
            index += 1
            for question in asked or ():
                if question is None:
                    continue
                id = f"{self.split}-{self.seed}-{type}-{len(items)}"
                prompt = question_conversation(draw(scene, self.canvas), question, id, self._source)
                items.append(DeskItem(prompt, question.truth, type, id, scene))
        return items[:count]

    def _messages(self, scene: Scene, index: int) -> tuple[Message, ...]:
        if self.kind == "caption":
            return as_caption(draw(scene, self.canvas), scene, self._dice(_WORDS, index))
        turns = self._turns(scene, index)
        if self.kind == "text":
            assert self.render is not None  # checked when the desk was made
            return as_text(scene, turns, self.render)
        return with_picture(_picture(scene, self.canvas), turns)

    def _turns(self, scene: Scene, index: int) -> list[Question]:
        dice = self._dice(_WORDS, index)
        for _ in range(_TRIES):
            if turns := ask_turns(scene, dice, self.mix or EVEN_MIX, self.num_turns):
                return turns
        raise DataError(
            f"conversation {index} of the desk: its scene allows no question of {', '.join(self.mix or ())}; add a type to the "
            "mix that every scene allows, such as count or name_single"
        )

    @property
    def _source(self) -> str:
        return f"desk/{self.split}/{self.seed}"

    def _dice(self, purpose: int, index: int, *more: int) -> Dice:
        return _dice(self.split, self.seed, purpose, index, *more)


def _dice(split: Split, seed: int, purpose: int, index: int, *more: int) -> Dice:
    if index < 0:
        raise IndexError(f"a desk is indexed from 0, got {index}")
    return Dice(split_code(split), seed, purpose, index, *more)


# Conversations that share a scene follow each other: a few kept ones spare most of the sampling and drawing.
@lru_cache(maxsize=8)
def _scene(split: Split, seed: int, place: int, max_digits: int, max_shapes: int, min_digits: int) -> Scene:
    return sample_scene(_dice(split, seed, _SCENE, place), split, max_digits, max_shapes, min_digits)


@lru_cache(maxsize=8)
def _picture(scene: Scene, canvas: int) -> np.ndarray:
    picture = draw(scene, canvas)
    picture.setflags(write=False)
    return picture
