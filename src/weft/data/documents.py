"""Data sets of documents: JSON lines of texts and pictures."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weft.core.conversation import Conversation
from weft.core.errors import DataError
from weft.data.dataset import Dataset
from weft.data.document_pictures import DocumentPictures
from weft.data.interleaving import Interleaving, Piece
from weft.data.json_lines import JsonLines


class Documents(Dataset):
    """Documents in JSON lines, one a line: a file, a folder of `*.jsonl` or a pattern. Only their places are kept.

    Every record is checked when the data set is built; pictures are opened by the processor. Those in which no picture has a
    text are left out. Of a broken record, and of a picture that is not there, `strict` makes an error; otherwise they are
    skipped and counted (`remarks`).

    Raises: DataError naming file, line, what was expected and what was found.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        path: str
        images: str = ""  # the folder that pictures are named from; by default the documents' own
        min_bytes: int = 0  # of a picture's file
        interleaving: Interleaving = field(default_factory=Interleaving)
        strict: bool = True

        @abstractmethod
        def build(self) -> Documents: ...

    def __init__(self, config: Config) -> None:
        self.config = config
        place = Path(config.path)
        folder = Path(config.images) if config.images else place if place.is_dir() else place.parent
        self.pictures = DocumentPictures(folder, config.strict, config.min_bytes)
        self.lines = JsonLines(config.path, lambda record, name: self._read(record, name) is not None, config.strict)
        self._remarks = (*self.lines.remarks(), *self.pictures.remarks())

    @abstractmethod
    def pieces(self, record: Any) -> list[Piece]:
        """Texts and pictures of a record, in order. Raises: DataError with the reason where it is not sound."""

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> Conversation:
        """Document `index`; IndexError beyond the end."""
        record, name = self.lines[index]
        conversation = self._read(record, name)
        if conversation is None:
            raise DataError(f"document {name} had a picture when it was opened and has none now")
        return conversation

    def remarks(self) -> tuple[str, ...]:
        return self._remarks

    def _read(self, record: Any, name: str) -> Conversation | None:
        source, _, line = name.rpartition(":")
        return self.config.interleaving.conversation(self.pieces(record), id=line, source=source)
