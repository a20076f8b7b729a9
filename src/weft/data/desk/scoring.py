"""Scoring desk answers: exact match, boxes by overlap, captions by facts, and the baselines beside them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from weft.data.desk.questions import QUESTIONS
from weft.data.desk.scene import Box
from weft.data.desk.world import Desk, DeskItem

ParseBox = Callable[[str], tuple[float, ...] | None]
"""Reads a box from text, None where there is none; the processor's box format provides it."""

IOU_THRESHOLD = 0.5


def score(item: DeskItem, answer: str, parse: ParseBox) -> float:
    """The mark of an answer between 0 and 1; only `caption_detailed` gives marks in between."""
    if isinstance(item.truth, tuple):
        coordinates = parse(answer)
        if coordinates is None or len(coordinates) != 4:
            return 0.0
        x1, y1, x2, y2 = coordinates
        return float(iou(item.truth, (x1, y1, x2, y2)) >= IOU_THRESHOLD)
    if item.type == "caption_detailed":
        return fact_share(item.truth, answer)
    return float(normalise(extract(item.type, answer)) == normalise(item.truth))


def extract(type: str, answer: str) -> str:
    """The part of an answer that is scored: of worked sums the last number, else all of it."""
    if type == "sum_reasoning":
        numbers = re.findall(r"\d+", answer)
        return numbers[-1] if numbers else ""
    return answer


def normalise(text: str) -> str:
    """Lower case, single spaces, no final period."""
    return " ".join(text.lower().split()).rstrip(".").rstrip()


def iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes; 0 where one of them is empty or inverted."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    areas = [max(0.0, b[2] - b[0]) * max(0.0, b[3] - b[1]) for b in (first, second)]
    if width <= 0 or height <= 0 or min(areas) <= 0:
        return 0.0
    return width * height / (sum(areas) - width * height)


def fact_share(truth: str, answer: str) -> float:
    """Right facts over the larger of the two numbers of facts, so that neither silence nor chatter pays."""
    wanted, given = (Counter(normalise(fact) for fact in text.split(",")) for text in (truth, answer))
    return (wanted & given).total() / max(wanted.total(), given.total())


def accuracy(items: Sequence[DeskItem], answers: Sequence[str], parse: ParseBox) -> dict[str, float]:
    """The mean mark of every type, in percent, and their mean under `mean`."""
    marks: dict[str, list[float]] = {}
    for item, answer in zip(items, answers, strict=True):
        marks.setdefault(item.type, []).append(score(item, answer, parse))
    table = {type: 100.0 * sum(m) / len(m) for type, m in marks.items()}
    return {**table, "mean": sum(table.values()) / len(table)}


def most_frequent_answers(num_per_type: int = 400, seed: int = 0) -> dict[str, str | Box]:
    """Per type the answer that a reader of training answers alone would give; of boxes the corner-wise median."""
    items = Desk("train", seed).items(num_per_type)
    best: dict[str, str | Box] = {}
    for type in QUESTIONS:
        truths = [item.truth for item in items if item.type == type]
        boxes = [t for t in truths if isinstance(t, tuple)]
        if boxes:
            x1, y1, x2, y2 = (sorted(corners)[len(boxes) // 2] for corners in zip(*boxes, strict=True))
            best[type] = (x1, y1, x2, y2)
        else:
            best[type] = Counter(str(t) for t in truths).most_common(1)[0][0]
    return best


def constant_accuracy(items: Iterable[DeskItem], constants: Mapping[str, str | Box]) -> dict[str, float]:
    """What always giving the most frequent answer scores, per type in percent and as `mean`."""
    marks: dict[str, list[float]] = {}
    for item in items:
        constant = constants[item.type]
        if isinstance(constant, tuple):
            mark = score(item, "", constant_box(constant))
        else:
            mark = score(item, constant, lambda _: None)
        marks.setdefault(item.type, []).append(mark)
    table = {type: 100.0 * sum(m) / len(m) for type, m in marks.items()}
    return {**table, "mean": sum(table.values()) / len(table)}


def constant_box(box: Box) -> ParseBox:
    """A reader that finds the same box in every text."""
    return lambda _: box


def random_colour_present(items: Iterable[DeskItem]) -> float:
    """What naming a random ink of the scene's digits scores on `colour_of_digit`, in percent (its expectation)."""
    chances = [1.0 / len(item.scene.digits) for item in items if item.type == "colour_of_digit"]
    return 100.0 * sum(chances) / len(chances)
