"""How a region is written in text, and read back. Coordinates are fractions of the original picture."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from weft.core import config
from weft.core.errors import ConfigError

Size = tuple[int, int]
"""(width, height) of the original picture in pixels."""


@dataclass(frozen=True, kw_only=True)
class FractionBoxes(config.Config):
    """`[0.12, 0.34, 0.56, 0.78]`, fractions with two decimals, of the square-padded picture when `square` (LLaVA-1.5).

    Trailing zeros are cut down to one decimal, as LLaVA-1.5's data writes them (arXiv:2310.03744).
    """

    decimals: int = 2
    square: bool = False

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The tokens that a tokenizer needs for this format."""
        return ()

    def render(self, coordinates: tuple[float, ...], size: Size | None = None) -> str:
        """A region as text; without a size the picture is taken for a square."""
        if self.square:
            coordinates = _shift(coordinates, *_padding(size))
        return "[" + ", ".join(str(round(c, self.decimals)) for c in coordinates) + "]"

    def parse(self, text: str, size: Size | None = None) -> tuple[float, ...] | None:
        """The first region in a text, in fractions of the original picture (square without a size); None where none is."""
        for found in _BRACKETS.finditer(text):
            values = tuple(float(v) for v in found[1].split(","))
            if len(values) in (2, 4):
                if self.square:
                    left, top, scale_x, scale_y = _padding(size)
                    values = _shift(values, -left / scale_x, -top / scale_y, 1 / scale_x, 1 / scale_y)
                return tuple(min(1.0, max(0.0, v)) for v in values)
        return None


@dataclass(frozen=True, kw_only=True)
class BinnedBoxes(config.Config):
    """One token per coordinate, `<b00>` to `<b31>`: the bin that holds the coordinate (Pix2Seq, arXiv:2109.10852).

    Reading gives the middle of a first corner's bin and of a last corner's bin.
    """

    bins: int = 32

    square = False

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise ConfigError(f"binned boxes need at least 2 bins, got {self.bins}")

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """The tokens that a tokenizer needs for this format."""
        digits = max(2, len(str(self.bins - 1)))
        return tuple(f"<b{i:0{digits}d}>" for i in range(self.bins))

    def render(self, coordinates: tuple[float, ...], size: Size | None = None) -> str:
        """A region as text; the picture's size does not matter."""
        return "".join(self.special_tokens[min(int(c * self.bins), self.bins - 1)] for c in coordinates)

    def parse(self, text: str, size: Size | None = None) -> tuple[float, ...] | None:
        """The first run of exactly four or two bins, as the middles of the bins; None where there is none."""
        for found in re.finditer(r"(?:<b\d+>)+", text):
            values = [int(v) for v in re.findall(r"\d+", found[0])]
            if len(values) in (2, 4) and max(values) < self.bins:
                return tuple((v + 0.5) / self.bins for v in values)
        return None


@dataclass(frozen=True, kw_only=True)
class ThousandthBoxes(config.Config):
    """`<box>(120,340),(560,780)</box>`: whole thousandths of the picture as it is, cut off, at most 999 (Qwen-VL).

    What a box belongs to stands before it as `<ref>phrase</ref>`, in the text of the data. A point is a box of one corner,
    which Qwen-VL does not have. Written are thousandths, as in its data; read is `edge` as the far edge, 999 as in its
    evaluation, so that a box comes back within a thousandth either way. Source: arXiv:2308.12966.
    """

    edge: int = 999

    def __post_init__(self) -> None:
        if self.edge not in (999, 1000):
            raise ConfigError(f"the far edge of thousandths is read as 999 or as 1000, got {self.edge}")

    square = False

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The tokens that a tokenizer needs for this format."""
        return ("<ref>", "</ref>", "<box>", "</box>")

    def render(self, coordinates: tuple[float, ...], size: Size | None = None) -> str:
        """A region as text; the picture's size does not matter."""
        places = [min(int(1000 * c), 999) for c in coordinates]
        corners = (f"({x},{y})" for x, y in zip(places[::2], places[1::2], strict=True))
        return f"<box>{','.join(corners)}</box>"

    def parse(self, text: str, size: Size | None = None) -> tuple[float, ...] | None:
        """The first box or point in a text, as fractions; None where there is none."""
        found = _CORNERS.search(text)
        return None if found is None else tuple(min(int(v) / self.edge, 1.0) for v in re.findall(r"\d+", found[1]))


@dataclass(frozen=True, kw_only=True)
class BracketedBoxes(config.Config):
    """`[[120,340,560,780]]`: thousandths of the picture as it is in three digits, cut off, at most 999 (CogVLM).

    The data puts `;` between several boxes in one pair of brackets; a point has two numbers. Source: arXiv:2311.03079.
    """

    square = False

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The tokens that a tokenizer needs for this format."""
        return ()

    def render(self, coordinates: tuple[float, ...], size: Size | None = None) -> str:
        """A region as text; the picture's size does not matter."""
        return f"[[{','.join(f'{min(int(1000 * c), 999):03d}' for c in coordinates)}]]"

    def parse(self, text: str, size: Size | None = None) -> tuple[float, ...] | None:
        """The first box or point in a text, as fractions; None where there is none."""
        found = _DOUBLE_BRACKETS.search(text)
        return None if found is None else tuple(int(v) / 1000 for v in found[1].split(","))


Boxes = FractionBoxes | BinnedBoxes | ThousandthBoxes | BracketedBoxes
"""Every format."""

_THREE_DIGITS = r"\d{3}(?:,\d{3})"
_DOUBLE_BRACKETS = re.compile(rf"\[\[({_THREE_DIGITS}(?:,\d{{3}},\d{{3}})?)(?:;[\d,;]*)?\]\]")
_CORNER = r"\(\s*\d+\s*,\s*\d+\s*\)"
_CORNERS = re.compile(rf"<box>\s*({_CORNER}(?:\s*,\s*{_CORNER})?)\s*</box>")
_NUMBER = r"\s*\d*\.?\d+\s*"
_BRACKETS = re.compile(rf"\[({_NUMBER}(?:,{_NUMBER})+)\]")


def _padding(size: Size | None) -> tuple[float, float, float, float]:
    """Where a picture lies on its padded square: left and top, then its width and height, all as fractions."""
    width, height = size or (1, 1)
    side = max(width, height)
    return (side - width) // 2 / side, (side - height) // 2 / side, width / side, height / side


def _shift(coordinates: tuple[float, ...], left: float, top: float, scale_x: float, scale_y: float) -> tuple[float, ...]:
    return tuple(c * (scale_y if i % 2 else scale_x) + (top if i % 2 else left) for i, c in enumerate(coordinates))
