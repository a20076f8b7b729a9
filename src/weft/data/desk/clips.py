"""Short films of the desk: digits of real handwriting that appear one after another, or one that moves among others at rest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from weft.data.desk.dice import Dice
from weft.data.desk.draw import draw
from weft.data.desk.scans import Split
from weft.data.desk.scene import GRID, DigitObject, Scene, sample_scene

NUM_STEPS = 4
"""A film has so many moments at which something may appear; each is shown in the same number of frames."""
NUM_FRAMES = 8
MAX_DIGITS = 3
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_TRAVEL = 24  # raster steps of 64 that a moving digit goes from the first frame to the last


@dataclass(frozen=True)
class Clip:
    """A desk on which things happen.

    `scene` is how it ends, a moving digit where it starts. `appears` has the moment of each digit, in the order of the scene's
    digits, all 0 where one of them, `mover`, moves from the first frame to the last.
    """

    scene: Scene
    appears: tuple[int, ...]
    mover: int | None = None
    direction: str | None = None

    @property
    def digits(self) -> tuple[DigitObject, ...]:
        return self.scene.digits

    @property
    def moving(self) -> DigitObject | None:
        return None if self.mover is None else self.digits[self.mover]

    @cached_property
    def in_order(self) -> tuple[DigitObject, ...]:
        """The digits in the order in which they appear."""
        return tuple(digit for _, digit in sorted(zip(self.appears, self.digits, strict=True), key=lambda pair: pair[0]))

    def frames(self, num_frames: int = NUM_FRAMES, canvas: int = 64) -> np.ndarray:
        """The film. Shapes: [num_frames, canvas, canvas, 3] uint8."""
        return np.stack([draw(self.at(number, num_frames), canvas) for number in range(num_frames)])

    def at(self, frame: int, num_frames: int) -> Scene:
        """The desk of one frame; what moves lies above what rests."""
        step = frame * NUM_STEPS // num_frames
        there = [digit for digit, appears in zip(self.digits, self.appears, strict=True) if appears <= step]
        if self.mover is not None and self.direction is not None:
            moving, (across, down) = self.digits[self.mover], DIRECTIONS[self.direction]
            gone = round(_TRAVEL * frame / (num_frames - 1)) / GRID
            x1, y1, x2, y2 = moving.box
            shifted = (x1 + across * gone, y1 + down * gone, x2 + across * gone, y2 + down * gone)
            there = [digit for digit in there if digit is not moving] + [replace(moving, box=shifted)]
        return replace(self.scene, digits=tuple(there))


def sample_clip(dice: Dice, split: Split) -> Clip:
    """A clip of the split's own scans and layouts: digits that appear, or one that moves, equally likely."""
    scene = sample_scene(dice, split, max_digits=MAX_DIGITS, max_shapes=0)
    if dice.coin():
        return Clip(scene, tuple(dice.sample(range(NUM_STEPS), len(scene.digits))))
    mover, direction = dice.integer(0, len(scene.digits)), dice.choice(tuple(DIRECTIONS))
    started = replace(scene.digits[mover], box=_start(scene.digits[mover].box, *DIRECTIONS[direction]))
    digits = tuple(started if number == mover else digit for number, digit in enumerate(scene.digits))
    return Clip(replace(scene, digits=digits), (0,) * len(digits), mover, direction)


def _start(box: tuple[float, float, float, float], across: int, down: int) -> tuple[float, float, float, float]:
    """Where a digit starts that goes through its place on the desk, if the way there and on lies within the picture."""
    x1, y1, x2, y2 = (round(corner * GRID) for corner in box)
    left, top = _first(x1, x2 - x1, across), _first(y1, y2 - y1, down)
    return (left / GRID, top / GRID, (left + x2 - x1) / GRID, (top + y2 - y1) / GRID)


def _first(start: int, length: int, sign: int) -> int:
    """The start along one axis, moved half of the way back and into the picture, as its end is."""
    if sign == 0:
        return start
    lowest, highest = (0, GRID - length - _TRAVEL) if sign > 0 else (_TRAVEL, GRID - length)
    return min(max(start - sign * _TRAVEL // 2, lowest), highest)
