"""Conversation in, batch row out: the only place that writes placeholders, masks and spans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from weft.core import config
from weft.data.boxes import BinnedBoxes, FractionBoxes
from weft.data.images import ImageTransform


class Processor:
    """Turns conversations into tokens, targets, positions, media values and spans."""

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config):
        """`template` names a chat template; `transforms` one per stream; `boxes` how regions are written."""

        template: str = "vicuna_v1"
        transforms: Mapping[str, ImageTransform] = field(default_factory=dict)
        boxes: FractionBoxes | BinnedBoxes = FractionBoxes()
