"""Classes to choose from, how they are written, and an answer that ranks them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weft.core.errors import DataError
from weft.evaluation.ties import among_first

_BETTER, _EQUAL = " > ", " = "

Write = Callable[[str], str]
"""Writes the name of a class into a text."""


@dataclass(frozen=True)
class Classes:
    """The names of classes, and the templates that each is written in: "a photo of a {}." or a function of the name."""

    names: tuple[str, ...]
    templates: tuple[str | Write, ...] = ("{}",)

    def __post_init__(self) -> None:
        if len(self.names) < 2 or len(set(self.names)) < len(self.names):
            raise DataError(f"classification needs two or more classes of different names, got {len(self.names)}: {self.names}")
        if unclear := [name for name in self.names if _BETTER in name or _EQUAL in name]:
            raise DataError(f"the class {unclear[0]!r} holds {_BETTER!r} or {_EQUAL!r}, which rank classes in an answer")
        if not self.templates:
            raise DataError("classification needs a template to write class names in; '{}' is the name alone")
        if empty := [t for t in self.templates if isinstance(t, str) and "{}" not in t]:
            raise DataError(f"the template {empty[0]!r} has no {{}} for the name of the class")

    def texts(self) -> list[str]:
        """Every class in every template: all texts of the first class, then of the second."""
        return [t.replace("{}", name) if isinstance(t, str) else t(name) for name in self.names for t in self.templates]


@dataclass(frozen=True)
class Ranked:
    """An answer by choice: the names of the best classes, best first, those of equal score together."""

    text: str

    @staticmethod
    def of(scores: Tensor, names: Sequence[str], k: int) -> Ranked:
        """The best `k` of scores [classes], and what equals the last of them: "7 > 1 = 4"."""
        levels = torch.unique(scores.topk(min(k, len(scores))).values).flip(0)  # descending
        groups = [[names[number] for number in (scores == level).nonzero().flatten().tolist()] for level in levels]
        return Ranked(_BETTER.join(_EQUAL.join(group) for group in groups))

    @staticmethod
    def in_order(names: Sequence[str]) -> Ranked:
        """Names from best to worst, no two equal."""
        return Ranked(_BETTER.join(names))

    def mark(self, truth: str, k: int) -> float:
        """The chance that the truth is among the first `k`, names of equal score being ordered at random."""
        return self.mark_any((truth,), k)

    def mark_any(self, truths: Collection[str], k: int) -> float:
        """The chance that one of several truths is among the first `k`, names of equal score being ordered at random."""
        ahead = 0
        for group in (names.split(_EQUAL) for names in self.text.split(_BETTER)):
            if winners := len(set(truths).intersection(group)):
                return among_first(k - ahead, len(group), winners)
            ahead += len(group)
        return 0.0
