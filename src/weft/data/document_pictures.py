"""Where the pictures of a document are: files of a folder, or written into its record."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path

from weft.core.conversation import Media
from weft.core.errors import DataError

_INLINE = "data:"
_REMOTE = ("http://", "https://")


@dataclass
class DocumentPictures:
    """The pictures that documents name: paths within `folder`, or base64 text.

    A picture that is not there is an error when `strict`; otherwise the document does without it, and `num_missing` counts.
    One of fewer than `min_bytes` is left out; `num_small` counts.
    """

    folder: Path
    strict: bool = True
    min_bytes: int = 0
    num_missing: int = 0
    num_small: int = 0

    def named(self, name: str) -> Media | None:
        """The picture of a name: a path, or a data URI (`data:image/jpeg;base64,...`). None where it is left out.

        Raises: DataError where it is missing.
        """
        if name.startswith(_INLINE):
            return self.embedded(name.partition(",")[2])
        if name.startswith(_REMOTE):
            return self._missing(f"{name} is not on this machine; download it and name the file in its place")
        path = self.folder / name
        if not path.is_file():
            return self._missing(f"no image file {path}")
        return self._large_enough(Media(str(path)), path.stat().st_size)

    def embedded(self, text: str) -> Media | None:
        """The picture of a base64 text. Raises: DataError where it is none."""
        try:
            content = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise DataError(f"a picture is no base64 text: {text[:20]!r}...") from None
        return self._large_enough(Media(content), len(content))

    def remarks(self) -> list[str]:
        remarks = []
        if self.num_missing:
            remarks.append(f"pictures that are not there, their documents do without them: {self.num_missing:,}")
        if self.num_small:
            remarks.append(f"pictures of fewer than {self.min_bytes:,} bytes that were left out: {self.num_small:,}")
        return remarks

    def _missing(self, problem: str) -> Media | None:
        if self.strict:
            raise DataError(problem)
        self.num_missing += 1
        return None

    def _large_enough(self, medium: Media, size: int) -> Media | None:
        if size >= self.min_bytes:
            return medium
        self.num_small += 1
        return None
