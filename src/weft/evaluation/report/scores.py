"""Bars of the verdict and the chart of accuracy by question type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weft.evaluation.evaluation import BLIND, MODEL, MOST_FREQUENT, TEXT_ONLY, Evaluation
from weft.evaluation.report.drawing import Anchor, Drawing, shorten
from weft.evaluation.report.words import interval, percent, run_title
from weft.evaluation.statistics import Estimate

_MARKS = {TEXT_ONLY: "square", BLIND: "diamond", MOST_FREQUENT: "tick"}
_SHORT = {TEXT_ONLY: "text-only", BLIND: "shuffled", MOST_FREQUENT: "constant"}
_TITLE = "Accuracy by question type with 95% intervals and baselines"
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class _Row:
    """One line of the chart: the model's score and what baselines there are."""

    title: str
    score: Estimate
    baselines: Mapping[str, Estimate]


def verdict_chart(evaluation: Evaluation, width: float = 560) -> Drawing:
    """One bar a run: the mean over types with its 95% interval."""
    means = {run: mean for run in (MODEL, *evaluation.baselines) if (mean := evaluation.mean(run)) is not None}
    row = 68.0
    bottom = row * len(means)
    drawing = Drawing(width, bottom + 6, "Mean accuracy over question types, the model above its baselines")
    for number, (run, mean) in enumerate(means.items()):
        top, ours = number * row, run == MODEL
        drawing.text(0, top + 15, run_title(run), 14, "ink" if ours else "muted", bold=ours)
        drawing.text(width, top + 15, percent(mean.value), 16 if ours else 14, "blue" if ours else "ink", "end", bold=ours)
        drawing.text(width - 70, top + 15, interval(mean), 12, "muted", "end")
        drawing.rectangle(0, top + 24, width, 20, "wash", radius=2)
        tip = f"{run_title(run)}: {percent(mean.value)}, 95% interval {interval(mean)}"
        drawing.rectangle(0, top + 24, width * mean.value, 20, "blue" if ours else "faint", radius=2, tip=tip)
        drawing.line([(width * mean.low, top + 34), (width * mean.high, top + 34)], "ink", 2)
        for end in (mean.low, mean.high):
            drawing.line([(width * end, top + 29), (width * end, top + 39)], "ink", 2)
    for share in _SHARES:
        drawing.line([(width * share, bottom - 19), (width * share, bottom - 14)], "faint")
        drawing.text(width * share, bottom + 1, f"{share:.0%}", 11.5, "muted", _inside(share))
    return drawing


def accuracy_chart(evaluation: Evaluation, narrow: bool = False) -> Drawing:
    """One row a question type, best first, and their mean: a dot with its 95% interval, the baselines as other marks."""
    rows = [_row(evaluation, evaluation.title(type), type) for type in evaluation.types]
    rows.sort(key=lambda row: -row.score.value)
    rows.append(_row(evaluation, "Mean over types", None))
    return _narrow(evaluation, rows) if narrow else _wide(evaluation, rows)


def _row(evaluation: Evaluation, title: str, type: str | None) -> _Row:
    def estimate(run: str) -> Estimate | None:
        return evaluation.mean(run) if type is None else evaluation.by_type(type, run)

    score = estimate(MODEL)
    assert score is not None  # the model answers every type by definition
    return _Row(title, score, {run: found for run in evaluation.baselines if (found := estimate(run)) is not None})


def _wide(evaluation: Evaluation, rows: Sequence[_Row]) -> Drawing:
    columns = tuple(rows[-1].baselines)
    left, right, step, top, width = 206.0, 596.0, 29.0, 72.0, 1080.0
    apart = (width - 12 - right - 152) / max(1, len(columns))
    ends = {"": right + 72, " ": right + 152, **{run: right + 152 + apart * (i + 1) for i, run in enumerate(columns)}}
    bottom = top + step * len(rows) + 8
    drawing = Drawing(width, bottom + 26, _TITLE)
    _legend(drawing, evaluation.baselines, left, wrap=False)
    drawing.text(ends[""], top - 18, "accuracy", 12, "blue", "end", bold=True)
    drawing.text(ends[" "], top - 18, "95% interval", 12, "muted", "end")
    for run in columns:
        drawing.text(ends[run], top - 18, _SHORT.get(run, run_title(run)), 12, "muted", "end")
    for number in range(0, len(rows) - 1, 2):
        drawing.rectangle(0, top + step * number, width, step, "wash", opacity=0.55)
    _grid(drawing, left, right, top - 8, bottom)
    drawing.line([(0, bottom - step - 4), (width, bottom - step - 4)], "ink", 1.2)
    for number, row in enumerate(rows):
        last = number == len(rows) - 1
        y = top + step * (number + 0.5) + (8 if last else 0)
        drawing.text(8, y + 4.5, shorten(row.title, 30), 13.5, bold=last)
        _marks(drawing, row, left, right, y)
        drawing.text(ends[""], y + 4.5, f"{100 * row.score.value:.1f}", 13.5, "ink", "end", bold=True)
        drawing.text(ends[" "], y + 4.5, f"{100 * row.score.low:.0f} – {100 * row.score.high:.0f}", 13, "muted", "end")
        for run in columns:
            if run in row.baselines:
                drawing.text(ends[run], y + 4.5, f"{100 * row.baselines[run].value:.1f}", 13, "muted", "end")
    return drawing


def _narrow(evaluation: Evaluation, rows: Sequence[_Row]) -> Drawing:
    width, step = 360.0, 46.0
    top = 16.0 + 20 * ((len(evaluation.baselines) + 2) // 2)
    bottom = top + step * len(rows)
    drawing = Drawing(width, bottom + 26, _TITLE)
    _legend(drawing, evaluation.baselines, 6, wrap=True)
    _grid(drawing, 6, width - 6, top - 4, bottom)
    for number, row in enumerate(rows):
        y, last = top + step * number, number == len(rows) - 1
        drawing.rectangle(0, y + 1, width, 20, "card")
        if last:
            drawing.line([(0, y), (width, y)], "ink", 1.2)
        drawing.text(6, y + 16, shorten(row.title, 30), 13.5, bold=last)
        drawing.text(width - 76, y + 16, percent(row.score.value), 13.5, "ink", "end", bold=True)
        drawing.text(width - 6, y + 16, f"{100 * row.score.low:.0f} – {100 * row.score.high:.0f}", 12, "muted", "end")
        _marks(drawing, row, 6, width - 6, y + 31)
    return drawing


def _marks(drawing: Drawing, row: _Row, left: float, right: float, y: float) -> None:
    span = right - left
    for run, other in row.baselines.items():
        _mark(drawing, run, left + span * other.value, y, f"{row.title}, {run_title(run)}: {_told(other)}")
    score = row.score
    drawing.line([(left + span * score.low, y), (left + span * score.high, y)], "blue", 5, opacity=0.35)
    drawing.circle(left + span * score.value, y, 5.5, "blue", tip=f"{row.title}: {_told(score)}, {score.num:,} questions")


def _mark(drawing: Drawing, run: str, x: float, y: float, tip: str = "") -> None:
    mark = _MARKS.get(run, "triangle")
    if mark == "diamond":
        drawing.area([(x, y - 6), (x + 6, y), (x, y + 6), (x - 6, y)], "card", stroke="orange", width=1.8, tip=tip)
    elif mark == "square":
        drawing.rectangle(x - 4.5, y - 4.5, 9, 9, "card", "muted", 1.6, tip=tip)
    elif mark == "tick":
        drawing.rectangle(x - 1.2, y - 8, 2.4, 16, "ink", opacity=0.75, tip=tip)
    else:
        drawing.area([(x, y - 6), (x + 6, y + 5), (x - 6, y + 5)], "card", stroke="green", width=1.8, tip=tip)


def _legend(drawing: Drawing, baselines: Sequence[str], x: float, wrap: bool) -> None:
    """The marks with their names, in one line or two to a line."""
    across, down = x, 14.0
    for number, run in enumerate((MODEL, *baselines)):
        label = "this model, 95% interval" if run == MODEL else run_title(run)
        if wrap:
            across, down = x + (number % 2) * 178, 14.0 + 20 * (number // 2)
        if run == MODEL:
            drawing.line([(across, down), (across + 20, down)], "blue", 5, opacity=0.35)
            drawing.circle(across + 10, down, 5.5, "blue")
        else:
            _mark(drawing, run, across + 10, down)
        drawing.text(across + 26, down + 4.5, label, 12.5, "muted")
        across += 46 + 6.6 * len(label)


def _grid(drawing: Drawing, left: float, right: float, top: float, bottom: float) -> None:
    for share in _SHARES:
        x = left + (right - left) * share
        drawing.line([(x, top), (x, bottom)], "line")
        drawing.text(x, bottom + 18, f"{share:.0%}", 11.5, "muted", _inside(share) if left < 20 else "middle")


def _inside(share: float) -> Anchor:
    """The anchor that keeps the outer labels within the drawing."""
    return "start" if share == 0 else "end" if share == 1 else "middle"


def _told(estimate: Estimate) -> str:
    return f"{percent(estimate.value)} ({interval(estimate)})"
