"""A sheet of samples for the eye: pictures with boxes, questions and answers."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

from weft.core.conversation import Message, Region, Text
from weft.data.desk.draw import draw
from weft.data.desk.scene import INKS
from weft.data.desk.world import Desk

_ZOOM_PIXELS = 256
_TEXT_PIXELS = 560
_LINE_PIXELS = 15
_MARGIN_PIXELS = 8


def preview(desk: Desk, path: str | Path, n: int = 8) -> Path:
    """Write the first `n` conversations of a desk as one PNG and return its path."""
    rows = [_row(desk, index) for index in range(n)]
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    path = Path(path)
    sheet.save(path)
    return path


def _row(desk: Desk, index: int) -> Image.Image:
    scene, messages = desk.scene(index), desk[index].messages
    lines = [f"#{index}", *(f"{m.role[0].upper()}: {_words(m)}" for m in messages)]
    height = max(_ZOOM_PIXELS, len(lines) * _LINE_PIXELS) + 2 * _MARGIN_PIXELS
    row = Image.new("RGB", (_ZOOM_PIXELS + _TEXT_PIXELS, height), "white")
    picture = Image.fromarray(draw(scene, desk.canvas)).resize((_ZOOM_PIXELS, _ZOOM_PIXELS), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(picture)
    for thing in scene.things:
        pen.rectangle([c * _ZOOM_PIXELS for c in thing.box], outline=INKS[thing.ink])
    row.paste(picture, (0, _MARGIN_PIXELS))
    pen = ImageDraw.Draw(row)
    for number, line in enumerate(lines):
        pen.text((_ZOOM_PIXELS + _MARGIN_PIXELS, _MARGIN_PIXELS + number * _LINE_PIXELS), line, fill="black")
    return row


def _words(message: Message) -> str:
    words = []
    for part in message.parts:
        if isinstance(part, Text):
            words.append(part.text)
        elif isinstance(part, Region):
            words.append("[" + ", ".join(f"{c:.2f}" for c in part.coordinates) + "]")
        else:
            words.append("<picture>")
    return " ".join(words)
