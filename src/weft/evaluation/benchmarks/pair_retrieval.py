"""Retrieval among one's own pairs of media and texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from weft.core.conversation import Media
from weft.core.errors import ConfigError, DataError
from weft.data.dataset import Dataset
from weft.data.datasets.captioned_recordings import CaptionedRecordings
from weft.data.datasets.llava_json import LlavaJson
from weft.data.rendering import caption
from weft.evaluation.retrieval import RetrievalBenchmark


class PairRetrieval(RetrievalBenchmark):
    """Your own pairs, each medium and text to be found by the other: `--set path=pairs.json --set images=pictures`.

    `path` is a LLaVA JSON file, of which the assistant's words are the text, or a folder of recordings with their captions. A
    file of several records is one medium with several texts; a text of several media is found with any of them.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(RetrievalBenchmark.Config):
        path: str = ""
        images: str = ""  # the folder that paths start from; by default the file's own

        def build(self) -> PairRetrieval:
            return PairRetrieval(self)

        def read(self) -> Iterator[tuple[Media, str]]:
            if not self.path:
                raise ConfigError(
                    "pair-retrieval searches your own pairs; give them: --set path=pairs.json --set images=pictures"
                )
            data = self._data().build()
            for conversation in map(data.__getitem__, range(len(data))):
                media = list(conversation.media())
                if len(media) != 1:
                    raise DataError(f"{self.path}, {conversation.id}: a pair is a text and one medium, got {len(media)} media")
                yield media[0], caption(conversation)

        def _data(self) -> Dataset.Config:
            if Path(self.path).is_dir():
                return CaptionedRecordings.Config(folder=self.path)
            return LlavaJson.Config(path=self.path, images=self.images)

    name = "pair-retrieval"
