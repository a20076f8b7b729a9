"""Benchmarks of the desk whose answers are words: items, marks, and the commonest answers of training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from weft.data.desk.asking import AskedItem, Asking
from weft.data.desk.scoring import normalise
from weft.evaluation.benchmark import Item

_TRAINING_ITEMS = 200


def items_of(asked: Sequence[AskedItem]) -> tuple[Item, ...]:
    """Items, each about media of its own."""
    return tuple(Item(item.id, item.type, item.id, item.conversation, item.truth, item) for item in asked)


def exact(item: Item, reply: str) -> float:
    """Full marks for the truth, without regard to case, spaces and a final period."""
    return float(normalise(reply) == normalise(str(item.truth)))


def commonest_answers(training: Asking[Any], types: Sequence[str] = ()) -> Mapping[str, str]:
    """Per type the answer that training gives most often."""
    counts = {type: Counter(training.truths(type, _TRAINING_ITEMS)) for type in types or training.questions}
    return {type: count.most_common(1)[0][0] for type, count in counts.items()}
