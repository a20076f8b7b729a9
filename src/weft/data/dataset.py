"""What a data set is: conversations by index."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from weft.core import config
from weft.core.conversation import Conversation


class Dataset(ABC):
    """Conversations by index, the same on every machine and in every process.

    A generated data set has no end: it is `endless`, `len()` is then the size of one epoch by convention, and any index is
    valid.
    """

    endless: ClassVar[bool] = False

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config, ABC):
        @abstractmethod
        def build(self) -> Dataset: ...

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Conversation: ...
