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
    """Of every type the first fully right answer and the first that is not, in the order of the benchmark."""
    by_id = {record.id: record for record in records}
    chosen: list[Exhibit] = []
    seen: set[tuple[str, bool]] = set()
    for item in items:
        record = by_id.get(item.id)
        if record is None or (key := (item.type, record.score >= 1.0)) in seen:
            continue
        seen.add(key)
        chosen.append(exhibit(item, record, read_box))
    return chosen


def exhibit(item: Item, record: Record, read_box: ReadBox) -> Exhibit:
    """One answer with its picture; boxes are drawn where the truth is a box and where the question holds one."""
    truth = item.truth if isinstance(item.truth, tuple) else None
    asked = [p for m in item.conversation.messages for p in m.parts if isinstance(p, Region) and len(p.coordinates) == 4]
    return Exhibit(
        picture=as_picture(next(item.conversation.media()).source),
        type=item.type,
        question=record.question,
        truth=record.truth,
        reply=record.reply,
        score=record.score,
        truth_box=truth,
        reply_box=read_box(record.reply) if truth is not None else None,
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
