"""Which answers the gallery shows: chosen by rule, so that nobody picks the pretty ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from weft.core.conversation import Region
from weft.evaluation.benchmark import Item, ReadBox
from weft.evaluation.records import Record
from weft.evaluation.report.content import Exhibit


def choose_exhibits(items: Sequence[Item], records: Sequence[Record], read_box: ReadBox) -> list[Exhibit]:
    """Of every type the first fully right answer and the first that is not, in the order of the benchmark.

    A question that could not be asked has no picture to show.
    """
    by_id = {record.id: record for record in records if not record.error}
    chosen: dict[tuple[str, bool], Exhibit] = {}
    for item in items:
        record = by_id.get(item.id)
        if record is not None and (key := (item.type, record.score >= 1.0)) not in chosen:
            chosen[key] = exhibit(item, record, read_box)
    types = dict.fromkeys(item.type for item in items)
    return [chosen[type, right] for type in types for right in (True, False) if (type, right) in chosen]


def exhibit(item: Item, record: Record, read_box: ReadBox) -> Exhibit:
    """One answer with its picture; boxes are drawn where the truth is a box and where the question holds one."""
    truth = item.truth if isinstance(item.truth, tuple) else None
    asked = [p for m in item.conversation.messages for p in m.parts if isinstance(p, Region) and len(p.coordinates) == 4]
    answered = read_box(record.reply) if truth is not None else None
    return Exhibit(
        picture=as_picture(next(item.conversation.media()).source),
        type=item.type,
        question=record.question,
        truth=record.truth if truth is None else "[" + ", ".join(f"{c:.2f}" for c in truth) + "]",
        reply=record.reply if answered is None else "[" + ", ".join(f"{c:.2f}" for c in answered) + "]",
        score=record.score,
        truth_box=truth,
        reply_box=answered,
        asked_box=asked[0].coordinates if asked else None,
    )


def as_picture(source: Any, largest: int = 384) -> np.ndarray:
    """A picture as (height, width, 3) uint8, reduced to at most `largest` pixels a side."""
    picture = Image.fromarray(source) if isinstance(source, np.ndarray) else source
    if not isinstance(picture, Image.Image):
        from weft.data.images import open_image

        picture = open_image(picture)
    picture = picture.convert("RGB")
    picture.thumbnail((largest, largest))
    return np.asarray(picture)
