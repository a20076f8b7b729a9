"""How sure a score is: 95% intervals for one question type and for the mean over types."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from weft.core.errors import DataError

Z_95 = 1.959963984540054  # the standard normal's 97.5% quantile
NUM_RESAMPLES = 4000

_Draws = dict[tuple[str, tuple[str, ...]], np.ndarray]
"""What was drawn for the last groups, by its kind and their names."""


@dataclass(frozen=True)
class Estimate:
    """A score with its 95% interval, over `num` answers. Units: fractions, 0 to 1 (differences: -1 to 1)."""

    value: float
    low: float
    high: float
    num: int


@dataclass(frozen=True)
class Marks:
    """The marks of one question type, each in [0, 1] (differences of marks: in [-1, 1]), and the group that each belongs to.

    Answers of one group share a picture and are not independent (mirrored pairs), so they are resampled together.
    """

    values: tuple[float, ...]
    groups: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.values or len(self.values) != len(self.groups):
            raise DataError(f"marks need one group each, got {len(self.values)} marks and {len(self.groups)} groups")


def wilson(right: float, num: int) -> tuple[float, float]:
    """The 95% score interval of a share `right / num`.

    Source: Wilson, 1927, doi:10.1080/01621459.1927.10502953; it stays inside [0, 1] and keeps its width at 0 and 1.
    """
    if num < 1:
        raise DataError(f"an interval needs at least one answer, got {num}")
    share, z2 = right / num, Z_95**2
    centre = (share + z2 / (2 * num)) / (1 + z2 / num)
    half = Z_95 / (1 + z2 / num) * math.sqrt(share * (1 - share) / num + z2 / (4 * num * num))
    # At the ends the formula gives 0 and 1 exactly; rounding would not.
    return (centre - half if right > 0 else 0.0), (centre + half if right < num else 1.0)


def of_type(marks: Marks, seed: int = 0) -> Estimate:
    """The mean of one type: Wilson where marks are independent and 0 or 1, otherwise a bootstrap over groups.

    A bootstrap of equal marks would claim certainty; there Wilson over the number of groups stands in.
    """
    values = np.array(marks.values)
    mean, num = float(values.mean()), len(values)
    num_groups = len(set(marks.groups))
    independent = num_groups == num and bool(np.isin(values, (0.0, 1.0)).all())
    if independent or values.min() == values.max():
        low, high = wilson(mean * num_groups, num_groups)
    else:
        low, high = _percentiles(_resampled_means(marks, np.random.default_rng(seed), {}))
    return Estimate(mean, min(low, mean), max(high, mean), num)


def over_types(by_type: Mapping[str, Marks], seed: int = 0, differences: bool = False) -> Estimate:
    """The mean over types of the means of types, with a stratified bootstrap: groups are resampled within each type.

    Types of the same groups, such as recalls at several ranks, are resampled alike, as they rise and fall together. Resampling
    a type that is all right or all wrong would claim certainty: its mean is drawn from Jeffreys' posterior instead, except
    where the marks are differences of two runs, which have no such ends.
    """
    if not by_type:
        raise DataError("a mean over types needs at least one type")
    rng, draws = np.random.default_rng(seed), _Draws()
    draw = _resampled_means if differences else _drawn_means
    means = np.mean([draw(marks, rng, draws) for marks in by_type.values()], axis=0)
    value = float(np.mean([np.mean(marks.values) for marks in by_type.values()]))
    low, high = _percentiles(means)
    return Estimate(value, min(low, value), max(high, value), sum(len(marks.values) for marks in by_type.values()))


def median(values: Sequence[float]) -> float:
    """The middle value; of an even number the mean of the two in the middle."""
    return float(np.median(values))


def _drawn_means(marks: Marks, rng: np.random.Generator, draws: _Draws) -> np.ndarray:
    """`NUM_RESAMPLES` means that the true mean of a type may have."""
    if set(marks.values) not in ({0.0}, {1.0}):
        return _resampled_means(marks, rng, draws)
    names = tuple(dict.fromkeys(marks.groups))
    wrong = _drawn(draws, "posterior", names, lambda: rng.beta(0.5, len(names) + 0.5, size=NUM_RESAMPLES))
    return 1.0 - wrong if marks.values[0] else wrong


def _resampled_means(marks: Marks, rng: np.random.Generator, draws: _Draws) -> np.ndarray:
    """`NUM_RESAMPLES` means, each over as many groups as there are, drawn with replacement."""
    numbers: dict[str, int] = {}
    group = np.array([numbers.setdefault(name, len(numbers)) for name in marks.groups])
    sums = np.bincount(group, weights=np.array(marks.values))
    sizes = np.bincount(group)
    num = len(numbers)
    chosen = _drawn(draws, "groups", tuple(numbers), lambda: rng.integers(0, num, size=(NUM_RESAMPLES, num)))
    return sums[chosen].sum(1) / sizes[chosen].sum(1)


def _drawn(draws: _Draws, kind: str, names: tuple[str, ...], draw: Callable[[], np.ndarray]) -> np.ndarray:
    """What was drawn for these groups already, or a new draw; types of the same groups follow each other."""
    if (kind, names) not in draws:
        for other in [key for key in draws if key[1] != names]:
            del draws[other]
        draws[kind, names] = draw()
    return draws[kind, names]


def _percentiles(means: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
