"""Random draws that are the same on every machine and with every NumPy release."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Dice:
    """Uniform draws from PCG64, keyed by a tuple of non-negative integers.

    Only the raw 64-bit words of the generator are used: NumPy promises their stream for good, which it does not for the
    distributions of `Generator`.
    """

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))
        self._words: list[float] = []

    def uniform(self) -> float:
        """A float in [0, 1)."""
        if not self._words:
            self._words = ((self._bits.random_raw(64) >> np.uint64(11)) * 2.0**-53).tolist()
        return self._words.pop()

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high)."""
        return low + int(self.uniform() * (high - low))

    def choice(self, options: Sequence[T]) -> T:
        """One of the options, each equally likely."""
        return options[int(self.uniform() * len(options))]

    def coin(self) -> bool:
        """True half of the time."""
        return self.uniform() < 0.5

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different options, in random order."""
        pool = list(options)
        for i in range(count):
            j = self.integer(i, len(pool))
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:count]

    def weighted(self, options: Sequence[T], weights: Sequence[float]) -> T:
        """One of the options, likely in proportion to its weight."""
        mark = self.uniform() * sum(weights)
        for option, weight in zip(options, weights, strict=True):
            mark -= weight
            if mark < 0.0:
                return option
        return options[-1]
