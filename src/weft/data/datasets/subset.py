"""A stretch of another data set: a few samples for a trial, or a part held out."""

from __future__ import annotations

from dataclasses import dataclass

from weft.core.conversation import Conversation
from weft.core.errors import ConfigError
from weft.data.dataset import Dataset


class Subset(Dataset):
    """Samples `start` to `stop` (None: to the end) of another data set, counted as in a slice."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        of: Dataset.Config
        start: int = 0
        stop: int | None = None

        def build(self) -> Subset:
            return Subset(self)

    def __init__(self, config: Config) -> None:
        self.config = config
        self.whole = config.of.build()
        self.indices = range(len(self.whole))[config.start : config.stop]
        if not self.indices:
            raise ConfigError(f"samples {config.start} to {config.stop} of {len(self.whole)} are none at all")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Conversation:
        return self.whole[self.indices[index]]
