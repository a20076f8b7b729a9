"""A sheet of samples for the eye: pictures with boxes, films frame by frame, sounds as spectrograms, questions and answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from weft.core.conversation import Conversation, Media, Message, Region, Text
from weft.core.layout import MediaLayout
from weft.data.audio import AudioTransform, Waveform
from weft.data.dataset import Dataset
from weft.data.desk.clips import NUM_STEPS
from weft.data.desk.draw import draw
from weft.data.desk.scene import INKS
from weft.data.desk.world import Desk
from weft.data.video import open_video

_ZOOM_PIXELS = 256
_TEXT_PIXELS = 560
_LINE_PIXELS = 15
_MARGIN_PIXELS = 8
_NUM_MELS = 64


def preview(desk: Desk, path: str | Path, n: int = 8) -> Path:
    """Write the first `n` conversations of a desk as one PNG and return its path."""
    return _sheet([_row(_with_boxes(desk, index), index, desk[index].messages) for index in range(n)], path)


def preview_media(dataset: Dataset, path: str | Path, n: int = 8) -> Path:
    """The same of conversations about films and sounds."""
    conversations = [dataset[index] for index in range(n)]
    return _sheet([_row(_shown(each), index, each.messages) for index, each in enumerate(conversations)], path)


def _sheet(rows: Sequence[Image.Image], path: str | Path) -> Path:
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    path = Path(path)
    sheet.save(path)
    return path


def _row(picture: Image.Image, index: int, messages: Sequence[Message]) -> Image.Image:
    lines = [f"#{index}", *(f"{m.role[0].upper()}: {_words(m)}" for m in messages)]
    height = max(picture.height, len(lines) * _LINE_PIXELS) + 2 * _MARGIN_PIXELS
    row = Image.new("RGB", (picture.width + _TEXT_PIXELS, height), "white")
    row.paste(picture, (0, _MARGIN_PIXELS))
    pen = ImageDraw.Draw(row)
    for number, line in enumerate(lines):
        pen.text((picture.width + _MARGIN_PIXELS, _MARGIN_PIXELS + number * _LINE_PIXELS), line, fill="black")
    return row


def _with_boxes(desk: Desk, index: int) -> Image.Image:
    scene = desk.scene(index)
    picture = _enlarged(draw(scene, desk.canvas), _ZOOM_PIXELS)
    pen = ImageDraw.Draw(picture)
    for thing in scene.things:
        pen.rectangle([c * _ZOOM_PIXELS for c in thing.box], outline=INKS[thing.ink])
    return picture


def _shown(conversation: Conversation) -> Image.Image:
    """All media of a conversation, side by side."""
    seen = [_seen(medium) for medium in conversation.media()]
    side = Image.new("RGB", (sum(each.width for each in seen), max(each.height for each in seen)), "white")
    left = 0
    for each in seen:
        side.paste(each, (left, 0))
        left += each.width
    return side


def _seen(medium: Media) -> Image.Image:
    if isinstance(medium.source, Waveform):
        seconds = len(medium.source.samples) / medium.source.sample_rate_hz
        heard = AudioTransform(num_mels=_NUM_MELS, clip_seconds=seconds)
        (levels,) = heard.open(medium.source, MediaLayout(1, heard.unit_shape[1])).units
        grey = np.rint(255 * (levels[::-1] - levels.min()) / max(np.ptp(levels), 1e-6)).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB").resize((_ZOOM_PIXELS, _ZOOM_PIXELS // 2), Image.Resampling.NEAREST)
    if medium.stream == "video":
        return _enlarged(np.concatenate(open_video(medium.source, NUM_STEPS), 1), _ZOOM_PIXELS // 2)
    return _enlarged(medium.source, _ZOOM_PIXELS // 2)


def _enlarged(pixels: np.ndarray, height: int) -> Image.Image:
    width = round(height * pixels.shape[1] / pixels.shape[0])
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)


def _words(message: Message) -> str:
    words = []
    for part in message.parts:
        if isinstance(part, Text):
            words.append(part.text)
        elif isinstance(part, Region):
            words.append("[" + ", ".join(f"{c:.2f}" for c in part.coordinates) + "]")
        else:
            words.append("<picture>" if part.stream == "image" else f"<{part.stream}>")
    return " ".join(words)
