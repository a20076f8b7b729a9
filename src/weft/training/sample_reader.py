"""The samples of a data set as a run reads them, and what becomes of one whose medium cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain, count
from typing import Any

from weft.core.conversation import Conversation
from weft.core.errors import DataError, UnreadableMedium
from weft.data.dataset import Dataset

Encode = Callable[[Conversation], Any]

_FEW = 10
_SHARE = 0.1  # a damaged file here and there is chance; more, and a folder, a decoder or a disk is what is broken


class SampleReader:
    """Reads samples by index and gives what `encode` makes of them.

    A medium that cannot be read is an error. With `skip_broken` its sample is left out, counted, and told once to `tell`; what
    is read in its place follows from the data alone, so that nothing is to be remembered for a run that is resumed.

    Raises: UnreadableMedium; with `skip_broken` DataError where more than `_FEW` samples and more than `_SHARE` of all are left
    out.
    """

    def __init__(
        self,
        dataset: Dataset,
        encode: Encode,
        skip_broken: bool = False,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.dataset = dataset
        self.encode = encode
        self.skip_broken = skip_broken
        self.tell = tell
        self.num_read = self.num_left_out = 0
        self._told: dict[str, None] = {}

    def find(self, index: int) -> Any | None:
        """Sample `index`; None where it is left out."""
        try:
            sample = self.encode(self.dataset[index])
        except UnreadableMedium as error:
            if not self.skip_broken:
                raise UnreadableMedium(f"{error}; mend it, or leave such samples out with --skip-broken") from None
            self._leave_out(str(error))
            return None
        self.num_read += 1
        return sample

    def first(self, indices: Iterable[int]) -> Any:
        """The first of these samples that is not left out."""
        for index in indices:
            if (sample := self.find(index)) is not None:
                return sample
        raise DataError(f"of the samples for one place none could be read; the last: {next(reversed(self._told))}")

    def standing_at(self, index: int, stride: int) -> Any:
        """Sample `index`; where it is left out the next in strides, and where they end the first of all that can be read."""
        if self.dataset.endless:
            return self.first(count(index, stride))
        return self.first(chain(range(index, len(self.dataset), stride), range(len(self.dataset))))

    def _leave_out(self, reason: str) -> None:
        self.num_left_out += 1
        if reason not in self._told:
            self._told[reason] = None
            self.tell(f"left out: {reason}")
        total = self.num_read + self.num_left_out
        if self.num_left_out > max(_FEW, _SHARE * total):
            raise DataError(
                f"{self.num_left_out:,} of {total:,} samples could not be read, more than {_SHARE:.0%}; mend the data, or what "
                f"it is read with. The last: {reason}"
            )
