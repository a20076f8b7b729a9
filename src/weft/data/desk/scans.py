"""The handwriting: 1,797 scans of single digits, split by scan."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from weft.core.errors import ConfigError, WeftError
from weft.data.desk.dice import Dice

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

NUM_SCANS = 1797
NUM_HELD_OUT = 300
"""Scans of the validation split, and of the test split; the rest train."""

_SPLIT_KEY = 20_240_601
_INK_LEVEL = 3
_MIN_COLUMNS = 4


@dataclass(frozen=True)
class Scan:
    """One handwritten digit, cropped to its ink: `pixels` (rows, columns) in 0..16, 16 being full ink."""

    id: int
    value: int
    pixels: np.ndarray

    @property
    def aspect(self) -> float:
        """Width over height."""
        return self.pixels.shape[1] / self.pixels.shape[0]


def split_code(split: Split) -> int:
    """The stable number of a split, the first entry of every random key.

    Raises: ConfigError for an unknown split.
    """
    if split not in SPLITS:
        raise ConfigError(f"unknown desk split {split!r}; known: {', '.join(SPLITS)}")
    return SPLITS.index(split)


@lru_cache(maxsize=1)
def all_scans() -> tuple[Scan, ...]:
    """Every scan by id.

    Source: sklearn.datasets.load_digits (UCI Optical Recognition of Handwritten Digits), part of scikit-learn's wheel.
    Raises: WeftError where scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise WeftError(
            "the desk draws with the handwriting in scikit-learn, which is not installed; pip install 'weft[demo]'"
        ) from error
    data = load_digits()
    images = np.rint(data.images).astype(np.int64)
    if len(images) != NUM_SCANS:
        raise WeftError(f"scikit-learn's load_digits has {len(images)} scans, expected {NUM_SCANS}; reinstall weft[demo]")
    pairs = zip(images, data.target, strict=True)
    return tuple(Scan(i, int(value), _crop(image)) for i, (image, value) in enumerate(pairs))


def _crop(image: np.ndarray) -> np.ndarray:
    inked = image >= _INK_LEVEL
    rows, columns = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
    left, right = int(columns[0]), int(columns[-1]) + 1
    while right - left < _MIN_COLUMNS:  # a bare stroke would give a box too thin to point at
        left, right = max(0, left - 1), min(image.shape[1], right + 1)
    return np.ascontiguousarray(image[rows[0] : rows[-1] + 1, left:right])


@lru_cache(maxsize=len(SPLITS))
def scans_by_value(split: Split) -> tuple[tuple[int, ...], ...]:
    """The scan ids of a split, listed by the digit that they show."""
    code = split_code(split)
    order = Dice(_SPLIT_KEY).sample(range(NUM_SCANS), NUM_SCANS)
    parts = (order[2 * NUM_HELD_OUT :], order[:NUM_HELD_OUT], order[NUM_HELD_OUT : 2 * NUM_HELD_OUT])
    scans = all_scans()
    return tuple(tuple(sorted(i for i in parts[code] if scans[i].value == value)) for value in range(10))
