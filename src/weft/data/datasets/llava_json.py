"""Conversations in LLaVA's JSON: a list, or one record a line.

Source: LLaVA, arXiv:2304.08485. A record is `{"id", "image": path or list of paths, "conversations": [{"from": "human" | "gpt",
"value"}]}`, with one `<image>` in the human turns for every image and an optional first turn from "system" (ShareGPT). A record
with "video" or "audio" holds such paths too, and one `<video>` or `<audio>` for each; without the field it is text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weft.core.conversation import Conversation, Media, Message, Part, Role, Text
from weft.core.errors import DataError
from weft.data.dataset import Dataset
from weft.data.json_records import json_records

STREAMS = {"image": "images", "video": "videos", "audio": "recordings"}
"""The streams that a record may name files of."""

_ROLES: dict[str, Role] = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


class LlavaJson(Dataset):
    """A LLaVA JSON or JSON-lines file and a folder of images, videos and recordings.

    Every record is checked when the data set is built, records are counted from 0; only their places in the file are kept, and
    media are opened by the processor. A bad record is an error when `strict`; otherwise it is left out and named in `skipped`.

    Raises: DataError naming file, record and reason.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        path: str
        images: str = ""  # the folder that paths start from; by default the file's own
        strict: bool = True

        def build(self) -> LlavaJson:
            return LlavaJson(self)

    def __init__(self, config: Config) -> None:
        self.config = config
        self.path = Path(config.path)
        self.images = Path(config.images) if config.images else self.path.parent
        self.skipped: list[str] = []
        places: list[tuple[int, int, int]] = []
        for number, (record, start, length) in enumerate(json_records(self.path)):
            try:
                conversation_of(record, self.images)
            except DataError as error:
                problem = f"{self.path}, record {number}{_id(record)}: {error}"
                if config.strict:
                    raise DataError(f"{problem}; mend it, or skip such records (strict=false, --skip-broken)") from None
                self.skipped.append(problem)
            else:
                places.append((start, length, number))
        if not places:
            raise DataError(f"{self.path} holds no usable record; {len(self.skipped)} were skipped")
        self._places = np.array(places, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._places)

    def remarks(self) -> list[str]:
        told = f"broken records that were skipped: {len(self.skipped):,}; the first: {self.skipped[0]}" if self.skipped else ""
        return [told] if told else []

    def __getitem__(self, index: int) -> Conversation:
        """Conversation `index`; IndexError beyond the end."""
        start, length, number = map(int, self._places[index])
        with self.path.open("rb") as file:
            file.seek(start)
            written = file.read(length)
        try:
            return conversation_of(json.loads(written), self.images, str(number), self.path.name)
        except (ValueError, DataError):
            raise DataError(f"{self.path} has changed since it was opened (record {number})") from None


def conversation_of(record: Any, images: Path, id: str = "", source: str = "") -> Conversation:
    """A record as a conversation; answers are trained on.

    Raises: DataError with the reason where the record is not sound.
    """
    if not isinstance(record, dict):
        raise DataError(f"a record is an object, got {type(record).__name__}")
    turns = _turns(record)
    paths = {stream: _paths(record, stream) for stream in STREAMS if stream in record}
    _check_markers(turns, paths)
    remaining = {f"<{stream}>": iter(named) for stream, named in paths.items()}
    messages = [_message(role, value, remaining, images) for role, value in turns]
    return Conversation(tuple(messages), id=str(record.get("id", id)), source=source)


def _turns(record: dict[str, Any]) -> list[tuple[Role, str]]:
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise DataError("it needs a list 'conversations' with at least one turn")
    read: list[tuple[Role, str]] = []
    for number, turn in enumerate(turns):
        speaker, value = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        if speaker not in _ROLES or not isinstance(value, str):
            raise DataError(f"turn {number} needs 'from' (human, gpt or system) and 'value' (text), got {_short(turn)}")
        read.append((_ROLES[speaker], value))
    spoken = [role for role, _ in read]
    dialogue = spoken[1:] if spoken[0] == "system" else spoken
    expected = ["user" if i % 2 == 0 else "assistant" for i in range(len(dialogue))]
    if dialogue != expected or not dialogue:
        raise DataError(
            f"turns must alternate human, gpt after an optional system turn, got {', '.join(t['from'] for t in turns)[:200]}"
        )
    if any(role == "assistant" and not value.strip() for role, value in read):
        raise DataError("a gpt turn is empty")
    return read


def _paths(record: dict[str, Any], stream: str) -> list[str]:
    named = record[stream]
    paths = [named] if isinstance(named, str) else named
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise DataError(f"'{stream}' is a path or a list of paths, got {_short(named)}")
    return paths


def _check_markers(turns: list[tuple[Role, str]], paths: Mapping[str, list[str]]) -> None:
    for stream in dict.fromkeys(("image", *paths)):  # <image> is never just a word, whether the record has pictures or not
        marker = f"<{stream}>"
        if any(marker in value for role, value in turns if role != "user"):
            raise DataError(f"{marker} stands in a turn that is not the human's")
        markers = sum(value.count(marker) for _, value in turns)
        if markers and stream not in paths:
            raise DataError(f"{marker} stands in the text {markers} times and the record has no '{stream}'")
        if stream in paths and markers != len(paths[stream]):
            raise DataError(f"{markers} {marker} in the text for {len(paths[stream])} {STREAMS[stream]}")


def _message(role: Role, value: str, paths: Mapping[str, Iterator[str]], images: Path) -> Message:
    parts: list[Part] = []
    for piece in re.split(f"({'|'.join(paths)})", value) if paths else (value,):
        if piece in paths:
            parts.append(Media(str(images / next(paths[piece])), piece[1:-1]))
        elif piece:
            parts.append(Text(piece))
    return Message(role, tuple(parts), train=role == "assistant")


def _id(record: Any) -> str:
    return f" (id {record['id']!r})" if isinstance(record, dict) and "id" in record else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
