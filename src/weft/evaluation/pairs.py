"""Media and texts that fit each other: what a retrieval searches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from weft.core.conversation import Media
from weft.core.errors import DataError


@dataclass(frozen=True)
class Pairs:
    """Different media, different texts, and `fits`: the number of a medium and of a text that fits it, for all that do.

    Raises: DataError for less than two media or two texts, among which nothing is searched.
    """

    media: tuple[Media, ...]
    texts: tuple[str, ...]
    fits: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if len(self.media) < 2 or len(self.texts) < 2:
            raise DataError(
                "a search needs two or more different media and two or more different texts, got "
                f"{len(self.media)} and {len(self.texts)}"
            )

    @staticmethod
    def of(pairs: Iterable[tuple[Media, str]]) -> Pairs:
        """What comes several times is one: a file with five captions, a caption of two files."""
        media: list[Media] = []
        numbers: dict[tuple[str, Any], int] = {}
        texts: dict[str, int] = {}
        fits: dict[tuple[int, int], None] = {}
        for medium, text in pairs:
            file = isinstance(medium.source, str | Path)
            number = numbers.setdefault((medium.stream, str(medium.source) if file else id(medium.source)), len(media))
            if number == len(media):
                media.append(medium)
            fits[number, texts.setdefault(text, len(texts))] = None
        return Pairs(tuple(media), tuple(texts), tuple(fits))

    @cached_property
    def texts_of(self) -> tuple[tuple[int, ...], ...]:
        """The texts that fit each medium."""
        found: list[list[int]] = [[] for _ in self.media]
        for medium, text in self.fits:
            found[medium].append(text)
        return tuple(map(tuple, found))

    @cached_property
    def media_of(self) -> tuple[tuple[int, ...], ...]:
        """The media that each text fits."""
        found: list[list[int]] = [[] for _ in self.texts]
        for medium, text in self.fits:
            found[text].append(medium)
        return tuple(map(tuple, found))
