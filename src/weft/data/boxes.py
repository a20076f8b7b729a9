"""How a region is written in text. Coordinates are fractions of the original picture."""

from __future__ import annotations

from dataclasses import dataclass

from weft.core import config


@dataclass(frozen=True, kw_only=True)
class FractionBoxes(config.Config):
    """`[0.12, 0.34, 0.56, 0.78]`, fractions with two decimals, of the square-padded picture when `square` (LLaVA-1.5)."""

    decimals: int = 2
    square: bool = False


@dataclass(frozen=True, kw_only=True)
class BinnedBoxes(config.Config):
    """One token per coordinate, `<b00>` to `<b31>`: the bin that holds the coordinate (Pix2Seq, arXiv:2109.10852)."""

    bins: int = 32
