"""Drawing a scene: integer NumPy only, so that the pixels are the same on every machine."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from weft.data.desk.dice import Dice
from weft.data.desk.scans import all_scans
from weft.data.desk.scene import INKS, DigitObject, Scene, Thing

_TINTS = (
    (246, 240, 224),
    (224, 202, 168),
    (222, 226, 230),
    (206, 224, 244),
    (250, 218, 222),
    (208, 238, 216),
    (250, 246, 196),
    (226, 214, 240),
)
_TEXTURE_KEY = 77
_FULL_INK = 16
_OVERSAMPLE = 4


def draw(scene: Scene, canvas: int = 64) -> np.ndarray:
    """The picture of a scene.

    Shapes: (canvas, canvas, 3) uint8.
    """
    picture = _surface(scene.tint, scene.texture, canvas).copy()
    for thing in scene.things:
        x1, y1, x2, y2 = (round(c * canvas) for c in thing.box)
        cover = _cover(thing, x2 - x1, y2 - y1)
        place = picture[y1:y2, x1:x2]
        place += (np.array(INKS[thing.ink], dtype=np.int32) - place) * cover >> 8
    return picture.astype(np.uint8)


def _cover(thing: Thing, width: int, height: int) -> np.ndarray:
    if isinstance(thing, DigitObject):
        return _digit_cover(thing.scan, width, height)
    return _shape_cover(thing.shape, width, height)


@lru_cache(maxsize=65_536)
def _digit_cover(scan: int, width: int, height: int) -> np.ndarray:
    """The ink of a scan, enlarged bilinearly: (height, width, 1) in 0..256."""
    pixels = all_scans()[scan].pixels
    tall = _stretch(pixels.shape[0], height) @ pixels @ _stretch(pixels.shape[1], width).T
    # Pencil-grey scans are pushed towards full ink, as a pen would draw them.
    return np.minimum(np.rint(tall * (256 * 1.15 / _FULL_INK)), 256).astype(np.int32)[:, :, None]


@lru_cache(maxsize=4096)
def _stretch(source: int, target: int) -> np.ndarray:
    """The matrix (target, source) of a bilinear enlargement."""
    centres = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    return np.maximum(0.0, 1.0 - np.abs(centres[:, None] - np.arange(source)[None, :]))


@lru_cache(maxsize=4096)
def _shape_cover(shape: str, width: int, height: int) -> np.ndarray:
    """The area of a shape with soft edges: (height, width, 1) in 0..256."""
    ys, xs = ((np.arange(n * _OVERSAMPLE) + 0.5) * 2 / (n * _OVERSAMPLE) - 1 for n in (height, width))
    y, x = ys[:, None], xs[None, :]
    radius = np.sqrt(x * x + y * y)
    if shape == "ring":
        inside = (radius < 1.0) & (radius > 0.55)
    elif shape == "square":
        inside = (np.abs(x) < 0.9) & (np.abs(y) < 0.9)
    elif shape == "star":
        inside = np.sqrt(np.abs(x)) + np.sqrt(np.abs(y)) < 1.05
    else:
        body = (np.abs(x + 0.25) < 0.7 - 0.15 * y) & (y > -0.8) & (y < 0.9)
        handle = ((x - 0.5) ** 2 + y**2 < 0.25) & ((x - 0.5) ** 2 + y**2 > 0.07)
        inside = body | handle
    fine = np.broadcast_to(inside, (len(ys), len(xs))).astype(np.int32)
    blocks = fine.reshape(height, _OVERSAMPLE, width, _OVERSAMPLE).sum((1, 3))
    return (blocks * 256 // _OVERSAMPLE**2).astype(np.int32)[:, :, None]


@lru_cache(maxsize=256)
def _surface(tint: int, texture: int, canvas: int) -> np.ndarray:
    """A desk top: a tint, a slow change of light, a fine grain."""
    dice = Dice(_TEXTURE_KEY, tint, texture, canvas)
    across, down = dice.integer(-16, 17), dice.integer(-16, 17)
    steps = np.arange(canvas, dtype=np.int32)
    light = (steps[None, :] * across + steps[:, None] * down) // canvas
    grain = np.array([dice.integer(-4, 5) for _ in range(canvas * canvas)], dtype=np.int32)
    surface = np.array(_TINTS[tint], dtype=np.int32) + (light + grain.reshape(canvas, canvas))[:, :, None]
    return np.clip(surface, 0, 255).astype(np.int32)
