"""The recordings of a folder with their captions: the layout of LAION-Audio-630K, unpacked."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from weft.core.conversation import Conversation, assistant
from weft.core.errors import DataError
from weft.data.dataset import Dataset
from weft.data.datasets.recordings import Recordings


class CaptionedRecordings(Dataset):
    """Audio files and beside each a JSON file of its name with `text`, a caption or a list of them; every caption is a pair.

    A recording without captions is an error when `strict`; otherwise it is left out and named in `skipped`.

    Raises: DataError naming a recording without captions, or a file that cannot be read.
    Source: LAION-Audio-630K, arXiv:2211.06687.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        folder: str
        stream: str = "audio"
        strict: bool = True

        def build(self) -> CaptionedRecordings:
            return CaptionedRecordings(self)

    def __init__(self, config: Config) -> None:
        self.config = config
        self.recordings = Recordings.Config(folder=config.folder, stream=config.stream).build()
        self.skipped: list[str] = []
        self.pairs = [
            (index, text)
            for index, name in enumerate(self.recordings.names)
            for text in self._captions((self.recordings.folder / name).with_suffix(".json"))
        ]
        if not self.pairs:
            raise DataError(f"no recording under {config.folder} has captions; the first: {self.skipped[0]}")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Conversation:
        recording, text = self.pairs[index]
        heard = self.recordings[recording]
        return replace(heard, messages=(*heard.messages, assistant(text)))

    def remarks(self) -> list[str]:
        if not self.skipped:
            return []
        return [f"recordings without captions that were skipped: {len(self.skipped):,}; the first: {self.skipped[0]}"]

    def _captions(self, path: Path) -> list[str]:
        try:
            return _captions(path)
        except DataError as error:
            if self.config.strict:
                raise DataError(f"{error}; mend it, or skip such recordings (strict=false, --skip-broken)") from None
            self.skipped.append(str(error))
            return []


def _captions(path: Path) -> list[str]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"no captions {path}; each recording needs a JSON file of its name beside it") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    found = record.get("text") if isinstance(record, dict) else None
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f"{path} needs 'text', a caption or a list of captions, got {found!r}")
    return texts
