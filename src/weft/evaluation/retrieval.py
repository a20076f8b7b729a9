"""Retrieval both ways: the texts of a medium among all texts, and the media of a text among all media."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, cast

import torch
from torch import Tensor

from weft.core.conversation import Conversation, Media, user
from weft.core.errors import ConfigError, UnreadableMedium
from weft.evaluation.benchmark import Benchmark, Item, ReadBox
from weft.evaluation.classes import Ranked
from weft.evaluation.evaluation import MODEL
from weft.evaluation.pairs import Pairs
from weft.evaluation.ties import among_first
from weft.evaluation.unreadable import made_or_refused
from weft.inference.embedder import Embedder, similarities
from weft.inference.sampling import Sampling

CHANCE = "random_order"
NOTES = {CHANCE: "all that is searched in random order"}
TO_TEXT, TO_MEDIA = "media_to_text", "text_to_media"


class RetrievalBenchmark(Benchmark):
    """Every medium looks for its texts and every text for its media, among all that there are: recall at each of `ranks`.

    A query is right where anything that fits it is among the k best; equal scores count by the chance that a random order would
    give. Answers are numbers of what was found. Intervals take the texts of a medium together, as they are not independent.
    Source: the protocol of Karpathy and Fei-Fei, arXiv:1412.2306; of a text's several media any is right here.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Benchmark.Config):
        ranks: tuple[int, ...] = (1, 5, 10)

        def __post_init__(self) -> None:
            if not self.ranks or min(self.ranks) < 1 or len(set(self.ranks)) < len(self.ranks):
                raise ConfigError(f"recall is taken at different ranks of 1 and more, got {self.ranks}")

        @abstractmethod
        def build(self) -> RetrievalBenchmark: ...

        @abstractmethod
        def read(self) -> Iterable[tuple[Media, str]]:
            """Every medium with a text that fits it."""

    medium, text = "medium", "text"
    """What people call a medium and a text of this benchmark."""
    notes = NOTES
    pairs: Pairs

    def __init__(self, config: Config) -> None:
        self.config = config
        self.pairs = Pairs.of(config.read())
        self.top = max(config.ranks)
        ways = {TO_TEXT: f"{self.medium} to {self.text}", TO_MEDIA: f"{self.text} to {self.medium}"}
        recalls = {_type(way, k): f"{words.capitalize()}, R@{k}" for way, words in ways.items() for k in config.ranks}
        self.titles = {MODEL: "found", CHANCE: "chance", **recalls}

    def items(self) -> tuple[Item, ...]:
        return self._items

    def score(self, item: Item, reply: str, read_box: ReadBox) -> float:
        return Ranked(reply).mark_any(_fitting(item), item.subject)

    def expectations(self) -> Mapping[str, Mapping[str, float]]:
        searched = {TO_TEXT: len(self.pairs.texts), TO_MEDIA: len(self.pairs.media)}
        among = {_type(way, k): number for way, number in searched.items() for k in self.config.ranks}
        return {CHANCE: {item.id: among_first(item.subject, among[item.type], len(_fitting(item))) for item in self._items}}

    @cached_property
    def _items(self) -> tuple[Item, ...]:
        pairs = self.pairs
        return (*self._asked(TO_TEXT, pairs.media, pairs.texts_of), *self._asked(TO_MEDIA, pairs.texts, pairs.media_of))

    def _asked(self, way: str, queries: Sequence[Media | str], fitting: Sequence[tuple[int, ...]]) -> Iterator[Item]:
        """Every query once for each rank, one after the other."""
        for number, (query, right) in enumerate(zip(queries, fitting, strict=True)):
            group = f"medium-{number if way == TO_TEXT else right[0]}"
            asked = Conversation((user(query),), id=f"{way}-{number}", meta={"query": (way, number)})
            for k in self.config.ranks:
                yield Item(f"{asked.id}-at-{k}", _type(way, k), group, asked, " ".join(map(str, right)), k)


class RetrievalModel:
    """A dual encoder that answers the queries of a benchmark with `pairs`, as a language model would answer its questions.

    A conversation says by `meta["query"]` which way it looks and the number of the medium or text that does. No text finds a
    medium that cannot be read; where it is to look itself, UnreadableMedium is raised.
    """

    def __init__(self, embedder: Embedder, pairs: Pairs, k: int = 10) -> None:
        self.embedder = embedder
        self.system = embedder.system
        self.processor = embedder.processor
        self.pairs = pairs
        self.k = k
        self._embedded: _Embedded | None = None

    def generate(self, conversations: Sequence[Conversation], settings: Sampling, *, batch_size: int = 32) -> list[Ranked]:
        """The numbers of the `k` best for each conversation, in order; nothing is sampled."""
        if self._embedded is None:  # every medium and text once, both as queries and as what is searched
            self._embedded = self._embed(batch_size)
        queries: list[tuple[str, int]] = [conversation.meta["query"] for conversation in conversations]
        found = {(way, number): self._search(way, number, self._embedded) for way, number in dict.fromkeys(queries)}
        return [found[query] for query in queries]

    def _embed(self, batch_size: int) -> _Embedded:
        found = made_or_refused(lambda media: self.embedder.media(media, batch_size).unbind(), self.pairs.media)
        refused = {number: error for number, error in enumerate(found) if isinstance(error, UnreadableMedium)}
        vectors = {number: vector for number, vector in enumerate(found) if isinstance(vector, Tensor)}
        if not vectors:
            raise refused[0]
        texts = self.embedder.texts(self.pairs.texts, batch_size)
        return _Embedded(torch.stack([*vectors.values()]), [*vectors], texts, refused)

    def _search(self, way: str, number: int, among: _Embedded) -> Ranked:
        if way == TO_MEDIA:
            scores = similarities(among.media, among.texts[number : number + 1])[:, 0]
            return Ranked.of(scores, [*map(str, among.numbers)], self.k)
        if number in among.refused:
            raise among.refused[number]
        row = among.numbers.index(number)
        scores = similarities(among.media[row : row + 1], among.texts)[0]
        return Ranked.of(scores, [*map(str, range(len(scores)))], self.k)


class _Embedded(NamedTuple):
    """Vectors of the media that can be read, with their numbers, and of all texts; why the other media cannot be read."""

    media: Tensor
    numbers: list[int]
    texts: Tensor
    refused: dict[int, UnreadableMedium]


def _type(way: str, k: int) -> str:
    return f"{way}_at_{k}"


def _fitting(item: Item) -> list[str]:
    """The numbers of what fits the query."""
    return cast(str, item.truth).split()
