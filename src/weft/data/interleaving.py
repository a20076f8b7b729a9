"""A document of texts and pictures as a conversation: pictures in turns of the user, texts in turns of the assistant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from weft.core import config
from weft.core.conversation import Conversation, Media, Message, Part, Text
from weft.core.errors import ConfigError
from weft.data.keyed_draws import uniform

Piece = str | Media
_MARKERS = {"<image>": "<IMAGE>", "<|image|>": "<|IMAGE|>"}  # in a page's own text they stand for no picture (VILA's rule)


@dataclass(frozen=True, kw_only=True)
class Interleaving(config.Config):
    """How the systems that read documents write them.

    `opening`: what stands before the first picture is "learned" like the rest, or only "read" (OpenFlamingo). `max_media` keeps
    the first pictures and all of the text. `random_start` begins a document at any of its pieces up to its last picture. Of
    `next_share` of the documents a text sees the picture behind it instead of the one before it (Flamingo: one half), for
    systems in which a token sees one picture. `single_share` keeps that share of the documents of one picture. What is drawn
    depends on `seed` and the document's name.

    Pictures behind the last text serve nobody and are left out, but where texts see the next picture.

    Source: Flamingo, arXiv:2204.14198; OpenFlamingo, arXiv:2308.01390 and its released script.
    """

    opening: Literal["learned", "read"] = "learned"
    max_media: int | None = None
    random_start: bool = False
    next_share: float = 0.0
    single_share: float = 1.0
    between: str = " "  # texts with no picture between them
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("next_share", "single_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"interleaving: {name} is a share from 0 to 1, got {getattr(self, name)}")
        if self.max_media is not None and self.max_media < 1:
            raise ConfigError(f"interleaving: max_media must be 1 or more, got {self.max_media}; none keeps all")

    def conversation(self, pieces: Sequence[Piece], id: str = "", source: str = "") -> Conversation | None:
        """The document as a conversation; None where no picture has a text, or the draw leaves it out.

        It may be cut anywhere but within a picture (`meta["document"]`).
        """
        draws = {what: uniform(self.seed, source, id, what) for what in ("next", "start", "single")}
        see_next = draws["next"] < self.next_share
        kept = self._kept([piece for piece in pieces if isinstance(piece, Media) or piece.strip()], draws["start"], see_next)
        num_media = sum(isinstance(piece, Media) for piece in kept)
        if num_media in (0, len(kept)) or (num_media == 1 and draws["single"] >= self.single_share):
            return None
        meta: dict[str, Any] = {"document": True, **({"visibility": "next"} if see_next else {})}
        return Conversation(tuple(self._messages(kept)), id=id, source=source, meta=meta)

    def _kept(self, pieces: Sequence[Piece], start: float, see_next: bool) -> list[Piece]:
        """The pieces from the document's beginning to its end."""
        places = [place for place, piece in enumerate(pieces) if isinstance(piece, Media)]
        if not places:
            return []
        first = int(start * (places[-1] + 1)) if self.random_start else 0
        places = [place for place in places if place >= first][: self.max_media]
        kept = [piece for place, piece in enumerate(pieces) if place >= first and (place in places or isinstance(piece, str))]
        while kept and not see_next and isinstance(kept[-1], Media):
            kept.pop()
        return kept

    def _messages(self, pieces: Sequence[Piece]) -> list[Message]:
        messages: list[Message] = []
        for is_media, run in groupby(pieces, lambda piece: isinstance(piece, Media)):
            parts: tuple[Part, ...]
            if is_media:
                parts = tuple(piece for piece in run if isinstance(piece, Media))
                if len(messages) == 1 and self.opening == "read":
                    parts = (*messages.pop().parts, *parts)
                messages.append(Message("user", parts))
            else:
                text = self.between.join(piece.strip() for piece in run if isinstance(piece, str))
                for marker, plain in _MARKERS.items():
                    text = text.replace(marker, plain)
                messages.append(Message("assistant", (Text(text),), train=True))
        return messages
