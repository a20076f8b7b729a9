"""From a picture to pixel values: open safely, resize, crop or pad, normalise. Pillow and numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from weft.core import config

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class ImageTransform(config.Config):
    """How one picture becomes [3, size, size] float values.

    `resize`: "shortest" scales the shorter side to `size` and crops the centre (CLIP), "direct" ignores the aspect (SigLIP).
    `pad_to_square` first centres the picture on a square filled with int(255 * mean) (LLaVA-1.5).
    """

    size: int = 224
    resize: Literal["shortest", "direct"] = "shortest"
    pad_to_square: bool = False
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
