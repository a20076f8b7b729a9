"""What a data set is: conversations by index."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from weft.core import config
from weft.core.conversation import Conversation

STREAM = 1 << 40
"""Indices of a stream: a data set without end that shuffles itself begins anew after as many."""


class Dataset(ABC):
    """Conversations by index, the same on every machine and in every process.

    A generated data set has no end: it is `endless`, `len()` is then the size of one epoch by convention, and any index is
    valid. One that is `shuffled` as well has an order of its own, which a run reads from the begin of a stream.
    """

    endless: ClassVar[bool] = False
    shuffled: ClassVar[bool] = False

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config, ABC):
        @abstractmethod
        def build(self) -> Dataset: ...

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Conversation: ...

    def remarks(self) -> Sequence[str]:
        """What is to be known of how the data was read: records that were left out, proportions. A run writes it down."""
        return ()
