"""Loss over steps, one small drawing a stage."""

from __future__ import annotations

import math
from itertools import pairwise

from weft.evaluation.report.content import Curve
from weft.evaluation.report.drawing import Drawing

_POINTS = 160
_LEFT, _RIGHT, _TOP, _BOTTOM = 38.0, 12.0, 30.0, 30.0


def curve_chart(curve: Curve, width: float = 344, height: float = 232) -> Drawing:
    """Training loss (blue, averaged over neighbouring steps) and validation loss (orange)."""
    drawing = Drawing(width, height, f"Loss of stage {curve.title}: training and validation")
    smooth = averaged(curve.train, _POINTS)
    seen = [*smooth, *curve.validation]
    if not seen:
        drawing.text(width / 2, height / 2, "no loss was recorded", 13, "muted", "middle")
        return drawing
    last = max(step for step, _ in (*curve.train, *curve.validation)) or 1.0
    ticks = nice_ticks(max(loss for _, loss in seen))
    right, bottom, top = width - _RIGHT, height - _BOTTOM, _TOP

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return _LEFT + (right - _LEFT) * point[0] / last, max(top - 4, bottom - (bottom - top) * point[1] / ticks[-1])

    for tick in ticks:
        y = place((0, tick))[1]
        drawing.line([(_LEFT, y), (right, y)], "line")
        drawing.text(_LEFT - 7, y + 4, f"{tick:g}", 11, "muted", "end")
    middle = float(round(last / 2))
    drawing.text(_LEFT, bottom + 18, "0", 11, "muted")
    if 0 < middle < last:
        drawing.text(place((middle, 0))[0], bottom + 18, f"{middle:,.0f}", 11, "muted", "middle")
    drawing.text(right, bottom + 18, f"{last:,.0f} steps", 11, "muted", "end")
    drawing.line([place(p) for p in smooth], "blue", 2.2)
    if curve.validation:
        drawing.line([place(p) for p in curve.validation], "orange", 1.6)
        for point in averaged(curve.validation, 24):
            x, y = place(point)
            drawing.area([(x, y - 4), (x + 4, y), (x, y + 4), (x - 4, y)], "card", stroke="orange", width=1.6)
    _ends(drawing, smooth, curve.validation, right)
    return drawing


def _ends(
    drawing: Drawing, train: list[tuple[float, float]], validation: tuple[tuple[float, float], ...], right: float
) -> None:
    """The last values, in words, at the top: a legend that also says where it ended."""
    at = _LEFT
    for values, name, colour in ((train, "training", "blue"), (validation, "validation", "orange")):
        if values:
            drawing.line([(at, 11), (at + 16, 11)], colour, 2.4)
            drawing.text(at + 22, 15, f"{name} {values[-1][1]:.3g}", 12, "ink")
            at += 128


def averaged(points: tuple[tuple[float, float], ...], limit: int) -> list[tuple[float, float]]:
    """At most about `limit` points: means over runs of equally many neighbours; the last run ends at the last step."""
    if len(points) <= limit:
        return list(points)
    edges = [round(i * len(points) / limit) for i in range(limit + 1)]
    runs = [points[a:b] for a, b in pairwise(edges) if b > a]
    return [(run[-1][0], sum(loss for _, loss in run) / len(run)) for run in runs]


def nice_ticks(largest: float, most: int = 5) -> list[float]:
    """Round numbers from 0 to at least `largest`."""
    if largest <= 0:
        return [0.0, 1.0]
    raw = largest / most
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * factor for factor in (1, 2, 2.5, 5, 10) if base * factor >= raw)
    return [round(step * i, 10) for i in range(math.ceil(largest / step - 1e-9) + 1)]
