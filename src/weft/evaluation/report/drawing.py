"""A few shapes drawn once and written twice: as inline SVG that follows the page's colours, and as PNG by Pillow."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LIGHT = {
    "paper": "#fbfaf7",
    "card": "#ffffff",
    "ink": "#1b1d22",
    "muted": "#62666f",
    "faint": "#9a9ea6",
    "line": "#dedcd5",
    "wash": "#f0eee8",
    "blue": "#0b62a4",
    "bluewash": "#dbe9f5",
    "orange": "#b8510a",
    "orangewash": "#fae6d6",
    "green": "#00795a",
    "greenwash": "#d8efe7",
    "halo": "#ffffff",
}
"""Colours by role on white paper; blue, orange and green after Okabe and Ito, told apart in all common colour blindness."""

DARK = {
    "paper": "#14161a",
    "card": "#1c1f25",
    "ink": "#eceae4",
    "muted": "#a3a7b0",
    "faint": "#747984",
    "line": "#343842",
    "wash": "#252932",
    "blue": "#6cb6f0",
    "bluewash": "#1e3a52",
    "orange": "#f09a4e",
    "orangewash": "#4a2f1a",
    "green": "#45c9a0",
    "greenwash": "#173d33",
    "halo": "#0b0c0e",
}

Anchor = Literal["start", "middle", "end"]
Point = tuple[float, float]


@dataclass(frozen=True)
class _Shape:
    kind: Literal["line", "area", "rectangle", "circle", "text", "image"]
    points: tuple[Point, ...]
    fill: str | None = None
    stroke: str | None = None
    width: float = 1.0
    dash: tuple[float, float] | None = None
    opacity: float = 1.0
    size: float = 0.0  # radius, corner radius or letter height
    text: str = ""
    anchor: Anchor = "start"
    bold: bool = False
    picture: Any = None
    tip: str = ""


class Drawing:
    """Shapes in drawing units, origin top left. Colours are names of roles in `LIGHT` and `DARK`.

    `title` tells those who cannot see the drawing what it shows.
    """

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self._shapes: list[_Shape] = []

    def line(
        self,
        points: Sequence[Point],
        stroke: str = "ink",
        width: float = 1.0,
        dash: tuple[float, float] | None = None,
        opacity: float = 1.0,
    ) -> None:
        """An open line through points."""
        self._shapes.append(_Shape("line", tuple(points), None, stroke, width, dash, opacity))

    def area(
        self,
        points: Sequence[Point],
        fill: str,
        opacity: float = 1.0,
        stroke: str | None = None,
        width: float = 1.0,
        tip: str = "",
    ) -> None:
        """A closed, filled polygon."""
        self._shapes.append(_Shape("area", tuple(points), fill, stroke, width, None, opacity, tip=tip))

    def rectangle(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str | None = None,
        stroke: str | None = None,
        line: float = 1.0,
        radius: float = 0.0,
        dash: tuple[float, float] | None = None,
        opacity: float = 1.0,
        tip: str = "",
    ) -> None:
        corners = ((x, y), (x + width, y + height))
        self._shapes.append(_Shape("rectangle", corners, fill, stroke, line, dash, opacity, radius, tip=tip))

    def circle(
        self,
        x: float,
        y: float,
        radius: float,
        fill: str | None = None,
        stroke: str | None = None,
        line: float = 1.0,
        tip: str = "",
    ) -> None:
        self._shapes.append(_Shape("circle", ((x, y),), fill, stroke, line, size=radius, tip=tip))

    def text(
        self, x: float, y: float, text: str, size: float = 13, fill: str = "ink", anchor: Anchor = "start", bold: bool = False
    ) -> None:
        """Text on the base line `y`."""
        self._shapes.append(_Shape("text", ((x, y),), fill, size=size, text=text, anchor=anchor, bold=bold))

    def image(self, x: float, y: float, width: float, height: float, picture: np.ndarray) -> None:
        """A picture (height, width, 3) uint8, its pixels kept sharp."""
        self._shapes.append(_Shape("image", ((x, y), (x + width, y + height)), picture=picture))

    def arrow(self, start: Point, end: Point, stroke: str = "muted", width: float = 1.5) -> None:
        """A line with a filled head at its end; horizontal or vertical."""
        (x1, y1), (x2, y2) = start, end
        length = max(abs(x2 - x1), abs(y2 - y1)) or 1.0
        dx, dy, head = (x2 - x1) / length, (y2 - y1) / length, 7.0
        neck = (x2 - dx * head, y2 - dy * head)
        self.line([start, neck], stroke, width)
        side = (-dy * head * 0.5, dx * head * 0.5)
        self.area([end, (neck[0] + side[0], neck[1] + side[1]), (neck[0] - side[0], neck[1] - side[1])], stroke)

    def svg(self, name: str = "") -> str:
        """The drawing as an `<svg>` element; colours come from the page's style sheet (classes f-<role> and s-<role>)."""
        body = "".join(_svg(shape) for shape in self._shapes)
        size = f'viewBox="0 0 {_n(self.width)} {_n(self.height)}"'
        classes = f' class="{escape(name)}"' if name else ""
        return f'<svg{classes} {size} role="img" aria-label="{escape(self.title)}">{body}</svg>'

    def png(self, path: str | Path, scale: int = 2, colours: dict[str, str] | None = None) -> Path:
        """The drawing as a PNG, `scale` pixels a unit, drawn twice as large and reduced for smooth edges."""
        colours = colours or LIGHT
        factor = scale * 2
        size = (round(self.width * factor), round(self.height * factor))
        canvas = Image.new("RGB", size, colours["card"])
        for shape in self._shapes:
            _paint(canvas, shape, factor, colours)
        margin = 24 * scale
        framed = Image.new("RGB", (size[0] // 2 + 2 * margin, size[1] // 2 + 2 * margin), colours["card"])
        framed.paste(canvas.resize((size[0] // 2, size[1] // 2), Image.Resampling.BOX), (margin, margin))
        path = Path(path)
        framed.save(path, "PNG", optimize=True)
        return path


def data_uri(picture: np.ndarray) -> str:
    """A picture (height, width, 3) uint8 as a PNG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def clean(text: str) -> str:
    """Text without control characters, which neither HTML nor SVG may hold."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


def escape(text: str) -> str:
    """Text as HTML and SVG may hold it, whoever wrote it."""
    return html.escape(clean(text))


def shorten(text: str, limit: int) -> str:
    """Text of at most `limit` characters, cut with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def _svg(shape: _Shape) -> str:
    paint = " ".join(name for name in (f"f-{shape.fill or 'none'}", f"s-{shape.stroke}" if shape.stroke else "") if name)
    style = f'class="{paint}"'
    if shape.stroke:
        style += f' stroke-width="{_n(shape.width)}"'
    if shape.dash:
        style += f' stroke-dasharray="{_n(shape.dash[0])} {_n(shape.dash[1])}"'
    if shape.opacity < 1:
        style += f' opacity="{_n(shape.opacity)}"'
    tip = f"<title>{escape(shape.tip)}</title>" if shape.tip else ""
    (x, y), (x2, y2) = shape.points[0], shape.points[-1]
    if shape.kind in ("line", "area"):
        element = "polyline" if shape.kind == "line" else "polygon"
        points = " ".join(f"{_n(px)},{_n(py)}" for px, py in shape.points)
        return f'<{element} points="{points}" {style}>{tip}</{element}>'
    if shape.kind == "rectangle":
        box = f'x="{_n(x)}" y="{_n(y)}" width="{_n(x2 - x)}" height="{_n(y2 - y)}" rx="{_n(shape.size)}"'
        return f"<rect {box} {style}>{tip}</rect>"
    if shape.kind == "circle":
        return f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(shape.size)}" {style}>{tip}</circle>'
    if shape.kind == "image":
        box = f'x="{_n(x)}" y="{_n(y)}" width="{_n(x2 - x)}" height="{_n(y2 - y)}"'
        return f'<image {box} preserveAspectRatio="none" class="pixels" href="{data_uri(shape.picture)}"></image>'
    weight = ' font-weight="600"' if shape.bold else ""
    place = f'x="{_n(x)}" y="{_n(y)}" font-size="{_n(shape.size)}" text-anchor="{shape.anchor}"'
    return f"<text {place}{weight} {style}>{escape(shape.text)}</text>"


def _paint(canvas: Image.Image, shape: _Shape, factor: float, colours: dict[str, str]) -> None:
    points = [(x * factor, y * factor) for x, y in shape.points]
    if shape.kind == "image":
        size = (round(points[1][0] - points[0][0]), round(points[1][1] - points[0][1]))
        picture = Image.fromarray(shape.picture).resize(size, Image.Resampling.NEAREST)
        canvas.paste(picture, (round(points[0][0]), round(points[0][1])))
        return
    fill, stroke = (_rgba(colours, role, shape.opacity) for role in (shape.fill, shape.stroke))
    pen = ImageDraw.Draw(canvas, "RGBA")
    width = max(1, round(shape.width * factor)) if stroke else 0
    if shape.kind == "text":
        anchor = {"start": "ls", "middle": "ms", "end": "rs"}[shape.anchor]
        pen.text(points[0], clean(shape.text), fill=fill, font=_font(shape.size * factor, shape.bold), anchor=anchor)
    elif shape.kind == "line":
        for part in _dashes(points, shape.dash, factor):
            pen.line(part, fill=stroke, width=width, joint="curve")
    elif shape.kind == "area":
        pen.polygon(points, fill=fill, outline=stroke, width=width or 1)
    elif shape.kind == "circle":
        (x, y), r = points[0], shape.size * factor + width / 2
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill, outline=stroke, width=width)
    elif shape.dash and stroke:
        (x1, y1), (x2, y2) = points
        for part in _dashes([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)], shape.dash, factor):
            pen.line(part, fill=stroke, width=width)
    else:
        (x1, y1), (x2, y2) = points
        if x2 > x1 and y2 > y1:
            pen.rounded_rectangle((x1, y1, x2, y2), shape.size * factor, fill=fill, outline=stroke, width=width)


def _dashes(points: list[Point], dash: tuple[float, float] | None, factor: float) -> list[list[Point]]:
    if dash is None:
        return [points]
    on, off = dash[0] * factor, dash[1] * factor
    parts: list[list[Point]] = []
    for (x1, y1), (x2, y2) in pairwise(points):
        length = max(1e-9, float(np.hypot(x2 - x1, y2 - y1)))
        at = 0.0
        while at < length:
            a, b = at / length, min(length, at + on) / length
            parts.append([(x1 + (x2 - x1) * a, y1 + (y2 - y1) * a), (x1 + (x2 - x1) * b, y1 + (y2 - y1) * b)])
            at += on + off
    return parts


def _rgba(colours: dict[str, str], role: str | None, opacity: float) -> tuple[int, int, int, int] | None:
    if role is None:
        return None
    code = colours[role].lstrip("#")
    return int(code[0:2], 16), int(code[2:4], 16), int(code[4:6], 16), round(255 * opacity)


@lru_cache(maxsize=64)
def _font(size: float, bold: bool) -> Any:
    """DejaVu Sans as matplotlib ships it where matplotlib is there, otherwise Pillow's own font, which has one weight."""
    try:
        from matplotlib import get_data_path

        name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
        return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / name), size * 0.92)
    except ImportError:
        return ImageFont.load_default(size)


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
