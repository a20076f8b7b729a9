"""What a benchmark is: items with truths, a mark for an answer, and the baselines that belong to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from weft.core import config
from weft.core.conversation import Conversation, Media, Region, Text
from weft.evaluation.classes import Classes
from weft.evaluation.pairs import Pairs

Truth = str | tuple[float, ...]
ReadBox = Callable[[str], tuple[float, ...] | None]
"""Finds a box in an answer, None where there is none; the processor's box format provides it."""
WriteBox = Callable[[tuple[float, ...]], str]
"""Writes a box as text; the processor's box format provides it."""


@dataclass(frozen=True)
class Item:
    """One question: the conversation to continue and the truth. Items of one `group` share a picture."""

    id: str
    type: str
    group: str
    conversation: Conversation
    truth: Truth
    subject: Any = None  # what the benchmark's own scorer needs beside the truth


class Benchmark(ABC):
    """Items in a fixed order and how answers to them are marked."""

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config, ABC):
        @abstractmethod
        def build(self) -> Benchmark: ...

    name: str
    max_new_tokens: int = 64
    classes: Mapping[str, Classes] = {}
    """What there is to choose from, by the `meta["classes"]` of a conversation: such a benchmark is for dual encoders."""
    pairs: Pairs | None = None
    """What is searched, by the `meta["query"]` of a conversation: for dual encoders too, and never asked with other media, as
    what is then right is a matter of chance and chance is known."""
    top: int = 1
    """How many of the best count, where there are classes or pairs."""
    titles: Mapping[str, str] = {}
    """A short name for people per question type, and per run where the usual one speaks of pictures and there are none; a
    type without one is shown by its own name."""
    notes: Mapping[str, str] = {}
    """What the figures mean: under `held_out` how the questions differ from training, under an expectation its rule."""

    @abstractmethod
    def items(self) -> Sequence[Item]:
        """The questions, the same on every machine."""

    @abstractmethod
    def score(self, item: Item, reply: str, read_box: ReadBox) -> float:
        """The mark of an answer, 0 to 1."""

    def most_frequent(self) -> Mapping[str, Truth]:
        """Per question type the answer that training answers alone suggest; empty where there is none."""
        return {}

    def expectations(self) -> Mapping[str, Mapping[str, float]]:
        """Marks that a named rule of thumb expects, by rule and item id: {"random colour present": {id: 0.5}}."""
        return {}


def shuffled(items: Sequence[Item]) -> list[Item]:
    """Every item with the pictures of another item of its type, in a circle by group; questions and truths stay.

    The circle goes by group, so mirrored questions about one picture do not keep it. A type with a single group borrows
    the pictures of the next type.
    """
    groups: dict[str, dict[str, Item]] = {}
    for item in items:
        groups.setdefault(item.type, {}).setdefault(item.group, item)
    donor: dict[tuple[str, str], Item] = {}
    types = list(groups)
    for number, type in enumerate(types):
        names = list(groups[type])
        if len(names) > 1:
            ring = [groups[type][names[(i + 1) % len(names)]] for i in range(len(names))]
        else:
            ring = [next(iter(groups[types[(number + 1) % len(types)]].values()))]
        donor.update(((type, name), other) for name, other in zip(names, ring, strict=True))
    return [_with_media(item, list(donor[item.type, item.group].conversation.media())) for item in items]


def without_media(items: Sequence[Item], write_box: WriteBox) -> list[Item]:
    """Every item with its pictures taken out and its regions written as text: what a text-only model is asked."""

    def strip(part: Text | Media | Region) -> list[Text]:
        if isinstance(part, Region):
            return [Text(write_box(part.coordinates))]
        return [part] if isinstance(part, Text) else []

    stripped = []
    for item in items:
        messages = tuple(
            replace(m, parts=tuple(text for part in m.parts for text in strip(part))) for m in item.conversation.messages
        )
        stripped.append(replace(item, conversation=replace(item.conversation, messages=messages)))
    return stripped


def question_text(conversation: Conversation) -> str:
    """The last user turn as people read it: text, and regions as fractions."""
    words = []
    for message in conversation.messages:
        if message.role == "user":
            words = [
                part.text if isinstance(part, Text) else "[" + ", ".join(f"{c:.2f}" for c in part.coordinates) + "]"
                for part in message.parts
                if not isinstance(part, Media)
            ]
    return "".join(words).strip()


def _with_media(item: Item, media: list[Media]) -> Item:
    count = 0

    def swap(part: Text | Media | Region) -> Text | Media | Region:
        nonlocal count
        if not isinstance(part, Media):
            return part
        count += 1
        return media[(count - 1) % len(media)] if media else part

    messages = tuple(replace(m, parts=tuple(swap(part) for part in m.parts)) for m in item.conversation.messages)
    return replace(item, conversation=replace(item.conversation, messages=messages))
