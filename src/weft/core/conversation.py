"""The conversation: what people write down before anything is a token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from weft.core.errors import DataError

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Text:
    """A run of text."""

    text: str


@dataclass(frozen=True)
class Media:
    """One medium of a stream.

    `source` is a path, `bytes` of an encoded file, a `PIL.Image.Image`, or an array (height, width, 3) uint8; what other
    streams accept is said by their transforms. `targets` is what a model without text is to say of each of its features: one
    whole number a feature.
    """

    source: Any
    stream: str = "image"
    targets: Any = field(default=None, compare=False)


@dataclass(frozen=True)
class Region:
    """A box or a point of a named medium, in fractions of the original medium.

    `coordinates` is (x1, y1, x2, y2) for a box or (x, y) for a point; `media` counts the conversation's media from 0.
    """

    coordinates: tuple[float, ...]
    media: int = 0

    def __post_init__(self) -> None:
        if len(self.coordinates) not in (2, 4) or not all(0.0 <= c <= 1.0 for c in self.coordinates):
            raise DataError(f"a region needs 2 or 4 fractions within [0, 1], got {self.coordinates}")
        if len(self.coordinates) == 4:
            x1, y1, x2, y2 = self.coordinates
            if x2 <= x1 or y2 <= y1:
                raise DataError(f"a box needs x1 < x2 and y1 < y2, got {self.coordinates}")


Part = Text | Media | Region


@dataclass(frozen=True)
class Message:
    """One turn: a role, its parts in order, and whether the model learns to write it."""

    role: Role
    parts: tuple[Part, ...]
    train: bool = False

    @property
    def media(self) -> tuple[Media, ...]:
        return tuple(p for p in self.parts if isinstance(p, Media))


@dataclass(frozen=True)
class Conversation:
    """Messages in order; `id`, `source` and `meta` name the sample and are never shown to a model."""

    messages: tuple[Message, ...]
    id: str = ""
    source: str = ""
    meta: dict[str, Any] = field(default_factory=dict, compare=False)

    def media(self) -> Iterator[Media]:
        """The media in document order."""
        for message in self.messages:
            yield from message.media

    @property
    def name(self) -> str:
        """How errors name this sample."""
        return f"{self.source}:{self.id}" if self.source else (self.id or "<unnamed>")


def user(*parts: Part | str) -> Message:
    """A user's turn; strings become text parts."""
    return Message("user", as_parts(parts))


def assistant(*parts: Part | str, train: bool = True) -> Message:
    """An assistant's turn, trained on unless said otherwise."""
    return Message("assistant", as_parts(parts), train=train)


def system(*parts: Part | str) -> Message:
    """A system turn."""
    return Message("system", as_parts(parts))


def as_parts(parts: tuple[Part | str, ...]) -> tuple[Part, ...]:
    return tuple(Text(p) if isinstance(p, str) else p for p in parts)
