"""Pictures with something drawn over them: boxes of the gallery and the attention of an answer's words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weft.evaluation.report.content import Exhibit, Gaze
from weft.evaluation.report.drawing import Drawing, shorten

_DEEP = 4.0  # times an even spread
_HEAT = np.array([[255, 255, 255], [255, 205, 90], [214, 84, 10]], dtype=np.float64) / 255  # falls evenly in lightness


def exhibit_picture(exhibit: Exhibit, size: float = 200) -> Drawing:
    """The picture with the box that was asked about, the true box (dashed) and the answered box (solid)."""
    height = size * exhibit.picture.shape[0] / exhibit.picture.shape[1]
    drawing = Drawing(size, height, f"Picture of the question: {exhibit.question}")
    drawing.image(0, 0, size, height, exhibit.picture)
    draw_boxes(drawing, exhibit, 0, 0, size, height)
    return drawing


def draw_boxes(drawing: Drawing, exhibit: Exhibit, x: float, y: float, width: float, height: float) -> None:
    """Each box over a halo, so that it shows on any ground; line styles tell them apart without colour."""
    wrong = exhibit.score < 1.0
    boxes = (
        (exhibit.asked_box, "ink", None),
        (exhibit.truth_box, "green", (5.0, 4.0)),
        (exhibit.reply_box, "orange" if wrong else "blue", None),
    )
    for box, colour, dash in boxes:
        if box is None or len(box) != 4 or box[2] <= box[0] or box[3] <= box[1]:
            continue
        left, top, right, bottom = (min(1.0, max(0.0, c)) for c in box)
        corner = (x + left * width, y + top * height, (right - left) * width, (bottom - top) * height)
        drawing.rectangle(*corner, None, "halo", 4.5, opacity=0.75)
        drawing.rectangle(*corner, None, colour, 2.2, dash=dash)


def gaze_picture(gaze: Gaze, word: int, size: float = 132) -> Drawing:
    """A heat map over the greyed picture, the strongest cell framed."""
    share = shares(gaze.maps[word])
    height = size * gaze.picture.shape[0] / gaze.picture.shape[1]
    drawing = Drawing(size, height, f"Attention over the picture while writing {gaze.words[word]!r}")
    draw_gaze(drawing, gaze, share, 0, 0, size, height)
    return drawing


def draw_gaze(drawing: Drawing, gaze: Gaze, share: np.ndarray, x: float, y: float, width: float, height: float) -> None:
    drawing.image(x, y, width, height, heat_map(gaze.picture, share))
    rows, columns = share.shape
    row, column = np.unravel_index(int(share.argmax()), share.shape)
    cell = (x + width * column / columns, y + height * row / rows, width / columns, height / rows)
    drawing.rectangle(*cell, None, "halo", 4)
    drawing.rectangle(*cell, None, "blue", 2.4)


def heat_map(picture: np.ndarray, share: np.ndarray) -> np.ndarray:
    """The picture in light grey, every cell tinted by its share of the attention; ink shows through.

    The scale ends at the strongest cell, but never below four times an even spread: where the model looked everywhere alike,
    nothing glows.

    Shapes: picture (height, width, 3) uint8, share [rows, cols] -> (height, width, 3) uint8.
    """
    height, width = picture.shape[:2]
    rows = np.arange(height) * share.shape[0] // height
    columns = np.arange(width) * share.shape[1] // width
    level = share / max(float(share.max()), _DEEP / share.size)
    tint = np.stack([np.interp(level, (0.0, 0.5, 1.0), _HEAT[:, channel]) for channel in range(3)], axis=-1)
    grey = picture.mean(-1, keepdims=True)
    grey = np.minimum(1.0, grey / max(1.0, float(np.percentile(grey, 80))))
    return np.rint(255 * (0.12 + 0.88 * grey) * tint[rows[:, None], columns[None, :]]).astype(np.uint8)


def shares(attention: np.ndarray) -> np.ndarray:
    """Attention over the picture as shares that sum to 1; equal shares where there is none."""
    weights = np.nan_to_num(np.maximum(np.asarray(attention, dtype=np.float64), 0.0), posinf=0.0)
    total = weights.sum()
    return weights / total if total > 0 else np.full(weights.shape, 1.0 / weights.size)


def gallery_sheet(exhibits: Sequence[Exhibit], columns: int = 4) -> Drawing:
    """The gallery as one drawing, for the PNG."""
    wide, tall, gap = 220.0, 318.0, 20.0
    rows = (len(exhibits) + columns - 1) // columns
    drawing = Drawing(
        columns * (wide + gap) + gap, max(1, rows) * (tall + gap) + gap, "Held-out questions with answers and truths"
    )
    for number, exhibit in enumerate(exhibits):
        x, y = gap + (number % columns) * (wide + gap), gap + (number // columns) * (tall + gap)
        drawing.rectangle(x, y, wide, tall, "card", "line", radius=8)
        drawing.image(x + 10, y + 10, 200, 200, exhibit.picture)
        draw_boxes(drawing, exhibit, x + 10, y + 10, 200, 200)
        mark, colour = verdict_of(exhibit.score)
        drawing.text(x + 10, y + 234, shorten(exhibit.question, 32), 12.5)
        drawing.text(x + 10, y + 258, "answer", 11, "muted")
        drawing.text(x + 56, y + 258, shorten(exhibit.reply or "(empty)", 25), 12.5, bold=True)
        drawing.text(x + 10, y + 279, "truth", 11, "muted")
        drawing.text(x + 56, y + 279, shorten(exhibit.truth, 25), 12.5)
        drawing.text(x + 10, y + 304, mark, 12.5, colour, bold=True)
    return drawing


def gaze_sheet(gazes: Sequence[Gaze], most: int = 6) -> Drawing:
    """The attention figures as one drawing, for the PNG."""
    size, gap, row = 132.0, 16.0, 208.0
    drawing = Drawing(gap + (size + gap) * (most + 1), max(1, len(gazes)) * row + gap, "Where the model looked")
    for number, gaze in enumerate(gazes):
        y = gap + number * row
        drawing.text(gap, y + 12, shorten(gaze.question, 60), 13.5, bold=True)
        drawing.image(gap, y + 24, size, size, gaze.picture)
        drawing.text(gap, y + 174, "as given", 12, "muted")
        for word in range(min(most, len(gaze.words))):
            x = gap + (size + gap) * (word + 1)
            share = shares(gaze.maps[word])
            draw_gaze(drawing, gaze, share, x, y + 24, size, size)
            drawing.text(x, y + 174, shorten(gaze.words[word].strip() or "␣", 12), 13, bold=True)
            drawing.text(x + size, y + 174, f"{share.max():.0%} in the frame", 11, "muted", "end")
    return drawing


def verdict_of(score: float) -> tuple[str, str]:
    """The word and the colour of a mark."""
    if score >= 1.0:
        return "right", "green"
    return ("wrong", "orange") if score <= 0.0 else (f"{score:.0%} right", "orange")
