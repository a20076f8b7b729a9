"""Documents of Multimodal C4: sentences, and pictures that belong to one of them each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from weft.core.errors import DataError
from weft.data.documents import Documents
from weft.data.interleaving import Piece

_SAME = 1e-4  # similarities are written with more digits than that


class Mmc4(Documents):
    """MMC4's shards, unpacked.

    A picture stands before the sentence that it was assigned to (`matched_text_index`), which no other one has. It is a file
    `image_name` of the folder `images`, or embedded as `image_base64`, as in OpenFlamingo's shards. Pictures that are less
    similar to their sentence than `min_similarity` are left out, then all but the first `max_images` in the order of the list.

    Source: MMC4, arXiv:2304.06939, and its released files. OpenFlamingo's script assigns the pictures that it has anew.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Documents.Config):
        min_similarity: float = -1.0
        max_images: int | None = None

        def build(self) -> Mmc4:
            return Mmc4(self)

    config: Config

    def pieces(self, record: Any) -> list[Piece]:
        """Sentences in order, each behind its picture."""
        sentences, images = sentences_and_images(record)
        before = {}
        for image in images:
            if image["matched_sim"] < self.config.min_similarity:
                continue
            embedded = image.get("image_base64")
            media = self.pictures.embedded(embedded) if embedded else self.pictures.named(image["image_name"])
            if media is not None:
                before[image["matched_text_index"]] = media
            if len(before) == self.config.max_images:
                break
        return [piece for place, text in enumerate(sentences) for piece in (before.get(place), text) if piece is not None]


def sentences_and_images(record: Any) -> tuple[list[str], list[dict[str, Any]]]:
    """The two lists of a record. Raises: DataError with the reason where they are not sound."""
    if not isinstance(record, dict):
        raise DataError(f"a record is an object, got {type(record).__name__}")
    sentences, images = record.get("text_list"), record.get("image_info")
    if not isinstance(sentences, list) or not all(isinstance(text, str) for text in sentences):
        raise DataError(f"it needs 'text_list', a list of sentences, got {_short(sentences)}; is it a file of MMC4?")
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise DataError(f"it needs 'image_info', a list of objects, got {_short(images)}; is it a file of MMC4?")
    similarity = record.get("similarity_matrix")
    taken: dict[int, int] = {}
    for number, image in enumerate(images):
        _check_image(number, image, len(sentences))
        place = image["matched_text_index"]
        if place in taken:
            raise DataError(f"images {taken[place]} and {number} both belong to sentence {place}; each has one of its own")
        taken[place] = number
        if similarity is not None:
            _check_similarity(number, image, similarity, len(images), len(sentences))
    return sentences, images


def _check_image(number: int, image: dict[str, Any], num_sentences: int) -> None:
    name, embedded = image.get("image_name"), image.get("image_base64")
    if not any(isinstance(text, str) and text for text in (name, embedded)):
        raise DataError(f"image {number} needs 'image_name' or 'image_base64', got {_short(name)} and {_short(embedded)}")
    place, found = image.get("matched_text_index"), image.get("matched_sim")
    if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < num_sentences:
        raise DataError(
            f"image {number}: 'matched_text_index' is the number of one of {num_sentences} sentences, got {_short(place)}"
        )
    if not isinstance(found, int | float) or isinstance(found, bool):
        raise DataError(f"image {number}: 'matched_sim' is a number, got {_short(found)}")


def _check_similarity(number: int, image: dict[str, Any], matrix: Any, num_images: int, num_sentences: int) -> None:
    rows = matrix if isinstance(matrix, list) else []
    if len(rows) != num_images or not all(isinstance(row, list) and len(row) == num_sentences for row in rows):
        raise DataError(f"'similarity_matrix' needs {num_images} rows of {num_sentences}, one for each image and sentence")
    told, found = rows[number][image["matched_text_index"]], image["matched_sim"]
    if not isinstance(told, int | float) or abs(told - found) > _SAME:
        raise DataError(f"image {number}: 'matched_sim' is {found}, the matrix has {told} for its sentence")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
