"""Several data sets as one, in given proportions."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, ClassVar, Literal

from weft.core import config
from weft.core.conversation import Conversation
from weft.core.errors import ConfigError
from weft.data.dataset import STREAM, Dataset
from weft.data.keyed_draws import shuffled
from weft.data.templates import template

Weighting = Literal["given", "sizes", "roots"]


class Mixture(Dataset):
    """Samples of several data sets in random order, without end.

    A part's probability goes by its weight alone ("given"), by its size times its weight ("sizes": with weights of 1 a
    concatenation, with 3 what is shown three times) or by the root of its size times its weight ("roots", InstructBLIP's).
    An epoch of `epoch` samples (0: as many as the parts have together, each times its weight under "sizes") holds `counts` of
    each, its probability to the nearest sample; after any number of epochs every sample of a part has been shown equally often,
    give or take one time.

    Index i depends on the seed and on i alone: which place of which epoch it is, which part has that place and which sample
    of the part comes next is arithmetic. A stretch of `STREAM` indices is a stream of its own, which begins anew; parts without
    end begin at its number.

    `loss_weight` of a part weighs its tokens in the loss; its conversations are written by `template` where it names one.

    Raises: ConfigError for weights that are no proportions, an epoch too short to hold a part, and an unknown template.
    Source: square-root sampling, InstructBLIP, arXiv:2305.06500; losses weighted by data set, Flamingo, arXiv:2204.14198.
    """

    endless: ClassVar[bool] = True
    shuffled: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Part(config.Config):
        data: Dataset.Config
        weight: float = 1.0
        loss_weight: float = 1.0
        template: str = ""

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        parts: Mapping[str, Mixture.Part]
        weighting: Weighting = "given"
        epoch: int = 0
        seed: int = 0

        def build(self) -> Mixture:
            return Mixture(self)

    def __init__(self, config: Config) -> None:
        self.config = config
        for name, part in config.parts.items():
            if not 0 <= part.loss_weight < math.inf:
                raise ConfigError(f"part {name!r} of a mixture: loss_weight must be 0 or above, got {part.loss_weight}")
        self.names = tuple(config.parts)
        weights = [part.weight for part in config.parts.values()]
        self._said = [_said_of(part) for part in config.parts.values()]
        check_weights(self.names, weights)
        self.parts = [part.data.build() for part in config.parts.values()]
        sizes = [len(part) for part in self.parts]
        self.probabilities = dict(zip(self.names, probabilities(sizes, weights, config.weighting), strict=True))
        by_size = config.weighting == "sizes"
        together = sum(size * (weight if by_size else 1.0) for size, weight in zip(sizes, weights, strict=True))
        self.epoch = config.epoch or max(1, round(together))
        self.counts = dict(zip(self.names, apportioned(self.epoch, list(self.probabilities.values())), strict=True))
        if none := [name for name in self.names if not self.counts[name]]:
            raise ConfigError(
                f"an epoch of {self.epoch} samples has no room for {', '.join(none)} (probability "
                f"{self.probabilities[none[0]]:.2g}); give a longer epoch, or leave the part out"
            )
        self._ends = list(accumulate(self.counts.values()))

    def __len__(self) -> int:
        return self.epoch

    def __getitem__(self, index: int) -> Conversation:
        """Sample `index`; IndexError where it is negative."""
        number, inner = self.locate(index)
        conversation = self.parts[number][inner]
        return replace(conversation, meta=conversation.meta | said) if (said := self._said[number]) else conversation

    def locate(self, index: int) -> tuple[int, int]:
        """The part that sample `index` comes from, and its index there."""
        if index < 0:
            raise IndexError(f"a mixture is indexed from 0, got {index}")
        stream, place = divmod(index, STREAM)
        epoch, place = divmod(place, self.epoch)
        seed = self.config.seed
        place = shuffled(place, self.epoch, seed, stream, epoch)
        number = bisect_right(self._ends, place)
        name, part = self.names[number], self.parts[number]
        shown = epoch * self.counts[name] + place - (self._ends[number] - self.counts[name])
        if part.endless:
            return number, shown + stream * (STREAM if part.shuffled else 1)
        turn, inner = divmod(shown, len(part))
        return number, shuffled(inner, len(part), seed, stream, name, turn)

    def remarks(self) -> list[str]:
        shares = ", ".join(f"{name} {self.counts[name] / self.epoch:.2%}" for name in self.names)
        told = [f"{name}: {remark}" for name, part in zip(self.names, self.parts, strict=True) for remark in part.remarks()]
        return [f"of {self.epoch:,} samples an epoch {shares}", *told]


def _said_of(part: Mixture.Part) -> dict[str, Any]:
    """What the part says of each of its conversations."""
    said: dict[str, Any] = {} if part.loss_weight == 1.0 else {"loss_weight": part.loss_weight}
    return said | ({"template": template(part.template).name} if part.template else {})


def check_weights(names: Sequence[str], weights: Sequence[float]) -> None:
    """Raises: ConfigError where there is no part, or one whose weight is no share."""
    if not names:
        raise ConfigError("a mixture needs at least one part")
    for name, weight in zip(names, weights, strict=True):
        if not 0 < weight < math.inf:
            raise ConfigError(
                f"part {name!r} of a mixture needs a weight above 0, got {weight}; leave out what is not to be seen"
            )


def probabilities(sizes: Sequence[int], weights: Sequence[float], weighting: Weighting) -> list[float]:
    """How likely a sample is to come from each data set; they sum to 1."""
    of_size = {"given": lambda size: 1.0, "sizes": float, "roots": math.sqrt}[weighting]
    shares = [of_size(size) * weight for size, weight in zip(sizes, weights, strict=True)]
    total = math.fsum(shares)
    return [share / total for share in shares]


def apportioned(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to shares of 1 that sum to `total`: rounded down, the rest to the largest remainders."""
    counts = [math.floor(total * share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - total * shares[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts
