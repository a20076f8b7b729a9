"""What a detector found in pictures, computed before: the record, and the tab-separated files in which it is published."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from weft.core.errors import DataError

COLUMNS = (
    "img_id",
    "img_h",
    "img_w",
    "objects_id",
    "objects_conf",
    "attrs_id",
    "attrs_conf",
    "num_boxes",
    "boxes",
    "features",
)
BEYOND = 1.0
"""Pixels by which a box may reach over the picture's edge; it is cut there. Detectors count pixels in two ways."""


@dataclass(frozen=True, eq=False)
class RegionFeatures:
    """The regions of one picture, the detector's surest first.

    Shapes: `boxes` [R, 4] float32 (x1, y1, x2, y2) in fractions of the picture, `features` [R, F] floats; `objects` and
    `attributes` [R] int64 the likeliest classes, `object_scores` and `attribute_scores` [R] float32 how sure they are.
    `size` is the picture's (width, height) in pixels.
    """

    image_id: str
    size: tuple[int, int]
    boxes: np.ndarray
    features: np.ndarray
    objects: np.ndarray
    object_scores: np.ndarray
    attributes: np.ndarray
    attribute_scores: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.boxes)
        if count < 1 or self.boxes.shape != (count, 4) or self.features.ndim != 2 or min(self.size) < 1:
            raise DataError(
                f"regions of {self.image_id!r} need boxes [R, 4] and features [R, F] of a picture with pixels, R at least 1; "
                f"got {self.boxes.shape}, {self.features.shape} and a picture of {self.size}"
            )
        counts = {name: len(getattr(self, name)) for name in ("features", *LABELS)}
        if wrong := [name for name, found in counts.items() if found != count]:
            raise DataError(f"{self.image_id!r} has {count} boxes and {counts[wrong[0]]} {wrong[0]}")
        floats = (self.boxes, self.features, self.object_scores, self.attribute_scores)
        if not all(np.isfinite(values).all() for values in floats):
            raise DataError(f"the regions of {self.image_id!r} hold a value that is not finite")
        x1, y1, x2, y2 = self.boxes.T
        bad = (self.boxes.min(1) < 0) | (self.boxes.max(1) > 1) | (x1 >= x2) | (y1 >= y2)
        if bad.any():
            number = int(bad.argmax())
            raise DataError(
                f"box {number} of {self.image_id!r} is {self.boxes[number].tolist()}; it needs 0 <= x1 < x2 <= 1 and "
                "0 <= y1 < y2 <= 1, in fractions of the picture"
            )


LABELS = ("objects", "object_scores", "attributes", "attribute_scores")


class _Place(NamedTuple):
    byte: int
    line: int


class RegionTsv:
    """The features of bottom-up attention as LXMERT publishes them: a picture a line, arrays in base64, boxes in pixels.

    The file is read through once for the pictures' names and their places; features are read when they are asked for.

    Raises: DataError with file and line for a row that cannot be used, when it is read.
    Source: bottom-up attention, arXiv:1707.07998; the columns are LXMERT's, arXiv:1908.07490.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._places: dict[str, _Place] = {}
        byte = 0
        for line, row in self._rows():
            image_id = self._fields(row, line)["img_id"]
            if image_id in self._places:
                raise self._refused(line, f"img_id {image_id!r} stands in line {self._places[image_id].line} already")
            self._places[image_id] = _Place(byte, line)
            byte += len(row)
        if not self._places:
            raise DataError(f"{self.path} is empty")
        self._width: int | None = None
        self._width = self[next(iter(self._places))].features.shape[1]

    @property
    def image_ids(self) -> tuple[str, ...]:
        """The pictures in the file's order."""
        return tuple(self._places)

    @property
    def feature_width(self) -> int:
        """F, the width of the features."""
        assert self._width is not None
        return self._width

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[RegionFeatures]:
        for line, row in self._rows():
            yield self._parsed(row, line)

    def __getitem__(self, image_id: str) -> RegionFeatures:
        """The regions of a picture. Raises: DataError where the file has none or its row cannot be used."""
        if image_id not in self._places:
            raise DataError(f"{self.path} has no picture {image_id!r} among its {len(self)}")
        byte, line = self._places[image_id]
        with self.path.open("rb") as file:
            file.seek(byte)
            return self._parsed(file.readline(), line)

    def _rows(self) -> Iterator[tuple[int, bytes]]:
        if not self.path.is_file():
            raise DataError(f"no file of region features {self.path}")
        with self.path.open("rb") as file:
            yield from enumerate(file, start=1)

    def _refused(self, line: int, reason: str) -> DataError:
        return DataError(f"{self.path}, line {line}: {reason}")

    def _fields(self, row: bytes, line: int) -> dict[str, str]:
        try:
            values = row.rstrip(b"\r\n").decode("ascii").split("\t")
        except UnicodeDecodeError:
            raise self._refused(line, "is no ASCII text") from None
        if len(values) != len(COLUMNS):
            raise self._refused(line, f"has {len(values)} fields, expected {len(COLUMNS)} ({', '.join(COLUMNS)})")
        fields = dict(zip(COLUMNS, values, strict=True))
        if not fields["img_id"]:
            raise self._refused(line, "has no img_id")
        return fields

    def _parsed(self, row: bytes, line: int) -> RegionFeatures:
        fields = self._fields(row, line)
        width, height, count = (self._count(fields, name, line) for name in ("img_w", "img_h", "num_boxes"))
        boxes = self._array(fields, "boxes", np.float32, count, line)
        features = self._array(fields, "features", np.float32, count, line)
        if boxes.shape[1] != 4:
            raise self._refused(line, f"boxes hold {boxes.shape[1]} numbers each, expected 4")
        if self._width not in (None, features.shape[1]):
            raise self._refused(line, f"features are {features.shape[1]} wide, those of the first line {self._width}")
        edge = np.array((width, height, width, height), np.float32)
        if (boxes < -BEYOND).any() or (boxes > edge + BEYOND).any():
            raise self._refused(line, f"a box lies outside of the picture, which is {width} x {height} pixels")
        labels = [
            self._labels(fields, "objects_id", np.int64, count, line),
            self._labels(fields, "objects_conf", np.float32, count, line),
            self._labels(fields, "attrs_id", np.int64, count, line),
            self._labels(fields, "attrs_conf", np.float32, count, line),
        ]
        try:
            return RegionFeatures(fields["img_id"], (width, height), (boxes / edge).clip(0, 1), features, *labels)
        except DataError as error:
            raise self._refused(line, str(error)) from None

    def _count(self, fields: dict[str, str], name: str, line: int) -> int:
        if not fields[name].isdigit() or len(fields[name]) > 9 or int(fields[name]) < 1:
            raise self._refused(line, f"{name} is {fields[name][:40]!r}, expected a whole number from 1 to 999999999")
        return int(fields[name])

    def _labels(self, fields: dict[str, str], name: str, kind: type, count: int, line: int) -> np.ndarray:
        array = self._array(fields, name, kind, count, line)
        if array.shape[1] != 1:
            raise self._refused(line, f"{name} holds {array.size} values for {count} boxes")
        return array[:, 0]

    def _array(self, fields: dict[str, str], name: str, kind: type, count: int, line: int) -> np.ndarray:
        """Shapes: [count, numbers of each box]; little-endian, as the published files are."""
        text = fields[name]
        try:
            values = base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise self._refused(line, f"{name} is no base64: {_first_stray(text) or error}") from None
        if len(text) != 4 * -(-len(values) // 3):  # the decoder lets padding pass that nothing asks for
            raise self._refused(line, f"{name} is no base64: it ends in more padding than its {len(values)} bytes take")
        dtype = np.dtype(kind).newbyteorder("<")
        if not values or len(values) % (count * dtype.itemsize):
            raise self._refused(line, f"{name} holds {len(values)} bytes, no multiple of {count} boxes of {np.dtype(kind)}")
        return np.frombuffer(values, dtype).astype(kind).reshape(count, -1)


def _first_stray(text: str) -> str:
    """Where a character stands that base64 has not; empty where each is one of its own."""
    stray = re.search(r"[^A-Za-z0-9+/=]", text)
    return f"character {stray.start() + 1} is {stray.group()!r}" if stray else ""
