"""A scene: what lies on the desk, where, and how scenes are sampled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from weft.core.errors import DataError
from weft.data.desk.dice import Dice
from weft.data.desk.scans import Split, all_scans, scans_by_value, split_code

Box = tuple[float, float, float, float]

INKS: dict[str, tuple[int, int, int]] = {
    "red": (214, 24, 30),
    "blue": (24, 60, 214),
    "green": (12, 142, 42),
    "black": (22, 20, 26),
    "orange": (247, 134, 8),
    "purple": (142, 28, 172),
}
SHAPES = ("cup", "ring", "square", "star")

GRID = 64
"""Layouts are drawn on this many steps per axis, whatever the canvas."""
MAX_DIGITS = 4
MAX_SHAPES = 2
NUM_TINTS = 8
NUM_TEXTURES = 8

STEP = 4
"""Things lie on a fine raster, every 4 of 64 steps: a small image tower learns in minutes to read at any of its places."""
_HEIGHTS = (16, 20, 24)
_SHAPE_SIDE = 12
_CENTRE_GAP = 5
_TRIES = 24
_LAYOUT_CLASSES: tuple[tuple[int, ...], ...] = ((0, 1), (2,), (3,))
_NUM_LAYOUT_CLASSES = 4


@dataclass(frozen=True)
class DigitObject:
    """A handwritten digit: value, ink, box (x1, y1, x2, y2) in fractions of the canvas, and the scan that it shows."""

    value: int
    ink: str
    box: Box
    scan: int

    @property
    def name(self) -> str:
        return f"{self.ink} {self.value}"


@dataclass(frozen=True)
class ShapeObject:
    """A simple object that is no digit: shape, ink and box in fractions of the canvas."""

    shape: str
    ink: str
    box: Box

    @property
    def name(self) -> str:
        return f"{self.ink} {self.shape}"


Thing = DigitObject | ShapeObject


@dataclass(frozen=True)
class Scene:
    """One desk: one to four digits of different inks, up to two shapes of any ink, a tint and a texture."""

    digits: tuple[DigitObject, ...]
    shapes: tuple[ShapeObject, ...]
    tint: int
    texture: int

    @cached_property
    def left_to_right(self) -> tuple[DigitObject, ...]:
        """The digits by the centre of their box."""
        return tuple(sorted(self.digits, key=lambda d: d.box[0] + d.box[2]))

    @cached_property
    def things(self) -> tuple[Thing, ...]:
        """Digits, then shapes."""
        return (*self.digits, *self.shapes)

    @cached_property
    def largest(self) -> DigitObject:
        """The tallest digit; it leads by a visible margin."""
        return max(self.digits, key=lambda d: d.box[3] - d.box[1])

    def unique_values(self) -> list[DigitObject]:
        """The digits whose value no other digit of the scene has."""
        values = [d.value for d in self.digits]
        return [d for d in self.digits if values.count(d.value) == 1]

    @property
    def layout(self) -> tuple[Box, ...]:
        """The boxes alone, sorted: what no two splits share."""
        return tuple(sorted(thing.box for thing in self.things))


def layout_class(layout: tuple[Box, ...]) -> int:
    """The residue by which a layout belongs to a split: the sum of its corners, in raster steps, modulo 4."""
    return sum(round(x * GRID / STEP) + round(y * GRID / STEP) for x, y, _, _ in layout) % _NUM_LAYOUT_CLASSES


def sample_scene(
    dice: Dice, split: Split, max_digits: int = MAX_DIGITS, max_shapes: int = MAX_SHAPES, min_digits: int = 1
) -> Scene:
    """A scene of the split's own scans and of the split's own layouts.

    Train, validation and test draw layouts of different `layout_class`, so no layout can be shared, however long a
    stream runs. One digit is visibly the largest and the centres of digits differ visibly from left to right.

    Raises: DataError where more digits are asked for than there are places.
    """
    if not 1 <= min_digits <= max_digits <= MAX_DIGITS or not 0 <= max_shapes <= MAX_SHAPES:
        raise DataError(
            f"a scene has 1 to {MAX_DIGITS} digits and 0 to {MAX_SHAPES} shapes, "
            f"got {min_digits} to {max_digits} and at most {max_shapes}"
        )
    scans, pool = all_scans(), scans_by_value(split)
    chosen = [dice.choice(pool[dice.integer(0, 10)]) for _ in range(dice.integer(min_digits, max_digits + 1))]
    num_shapes = dice.integer(0, max_shapes + 1)
    inks = dice.sample(tuple(INKS), len(chosen))
    boxes: list[tuple[int, int, int, int]] | None = None
    while boxes is None:
        boxes = _place(dice, [scans[i].aspect for i in chosen], num_shapes, _LAYOUT_CLASSES[split_code(split)])
    fractions = [(x / GRID, y / GRID, (x + w) / GRID, (y + h) / GRID) for x, y, w, h in boxes]
    digits = tuple(
        DigitObject(scans[i].value, ink, box, i) for i, ink, box in zip(chosen, inks, fractions[: len(chosen)], strict=True)
    )
    shapes = tuple(ShapeObject(dice.choice(SHAPES), dice.choice(tuple(INKS)), box) for box in fractions[len(chosen) :])
    return Scene(digits, shapes, dice.integer(0, NUM_TINTS), dice.integer(0, NUM_TEXTURES))


def _place(
    dice: Dice, aspects: list[float], num_shapes: int, classes: tuple[int, ...]
) -> list[tuple[int, int, int, int]] | None:
    largest = dice.integer(1, len(_HEIGHTS))
    heights = [_HEIGHTS[largest]] + [dice.choice(_HEIGHTS[:largest]) for _ in aspects[1:]]
    if len(aspects) == 1:
        heights = [dice.choice(_HEIGHTS)]
    sizes = [(round(h * a), h) for h, a in zip(heights, aspects, strict=True)]
    sizes += [(_SHAPE_SIDE, _SHAPE_SIDE)] * num_shapes
    wanted = dice.choice(classes)
    placed: list[tuple[int, int, int, int]] = []
    corner_sum = 0
    for number, (width, height) in enumerate(sizes):
        for _ in range(_TRIES):
            x, y = (STEP * dice.integer(0, (GRID - side) // STEP + 1) for side in (width, height))
            if number == len(sizes) - 1:
                x -= STEP * (((corner_sum + x + y) // STEP - wanted) % _NUM_LAYOUT_CLASSES)
            if x >= 0 and _fits(x, y, width, height, placed, len(aspects) if number < len(aspects) else 0):
                break
        else:
            return None
        placed.append((x, y, width, height))
        corner_sum += x + y
    return placed


def _fits(x: int, y: int, width: int, height: int, placed: list[tuple[int, int, int, int]], num_digits: int) -> bool:
    for number, (left, top, w, h) in enumerate(placed):
        if x < left + w and left < x + width and y < top + h and top < y + height:
            return False
        if number < num_digits and abs(2 * x + width - 2 * left - w) < 2 * _CENTRE_GAP:
            return False
    return True
