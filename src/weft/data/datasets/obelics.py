"""Documents of OBELICS: pictures and paragraphs in the order of the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from weft.core.errors import DataError
from weft.data.documents import Documents
from weft.data.interleaving import Piece


class Obelics(Documents):
    """OBELICS's rows as JSON lines.

    A row has two lists of one length, `images` and `texts`; at each place one of them has something and the other null. A
    picture is a path within the folder `images`, or embedded as a data URI; what the published rows hold, a URL, counts as a
    picture that is not there.

    Source: OBELICS, arXiv:2306.16527, and its data set card.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Documents.Config):
        def build(self) -> Obelics:
            return Obelics(self)

    def pieces(self, record: Any) -> list[Piece]:
        """Paragraphs and pictures in order."""
        found = (text if image is None else self.pictures.named(image) for image, text in images_and_texts(record))
        return [piece for piece in found if piece is not None]


def images_and_texts(record: Any) -> list[tuple[str | None, str | None]]:
    """What stands at each place of a row. Raises: DataError with the reason where the row is not sound."""
    if not isinstance(record, dict):
        raise DataError(f"a record is an object, got {type(record).__name__}")
    images, texts = record.get("images"), record.get("texts")
    if not isinstance(images, list) or not isinstance(texts, list):
        raise DataError(
            f"it needs the lists 'images' and 'texts', got {type(images).__name__} and {type(texts).__name__}; "
            "is it a file of OBELICS?"
        )
    if len(images) != len(texts):
        raise DataError(f"'images' and 'texts' are of one length, got {len(images)} and {len(texts)}")
    pairs = list(zip(images, texts, strict=True))
    for place, pair in enumerate(pairs):
        if sum(isinstance(value, str) for value in pair) != 1 or None not in pair:
            raise DataError(
                f"place {place} needs a text in one of 'images' and 'texts' and null in the other, got "
                f"{' and '.join(repr(value)[:60] for value in pair)}"
            )
    return pairs
