"""Bars of the verdict and the chart of accuracy by question type."""

from __future__ import annotations

from weft.evaluation.evaluation import BLIND, MODEL, MOST_FREQUENT, TEXT_ONLY, Evaluation
from weft.evaluation.report.drawing import Drawing, shorten
from weft.evaluation.report.words import interval, percent, run_title

_MARKS = {TEXT_ONLY: "square", BLIND: "diamond", MOST_FREQUENT: "tick"}


def verdict_chart(evaluation: Evaluation, width: float = 560) -> Drawing:
    """One bar a run: the mean over types with its 95% interval."""
    runs = [run for run in (MODEL, *evaluation.baselines) if evaluation.mean(run) is not None]
    row = 58.0
    drawing = Drawing(width, row * len(runs) + 26, "Mean accuracy over question types, the model above its baselines")
    for number, run in enumerate(runs):
        estimate = evaluation.mean(run)
        assert estimate is not None
        top, ours = number * row, run == MODEL
        drawing.text(0, top + 15, run_title(run), 14, "ink" if ours else "muted", bold=ours)
        drawing.text(width, top + 15, percent(estimate.value), 16 if ours else 14, "blue" if ours else "ink", "end", bold=ours)
        drawing.text(width - 70, top + 15, interval(estimate), 12, "muted", "end")
        drawing.rectangle(0, top + 24, width, 14, "wash", radius=2)
        tip = f"{run_title(run)}: {percent(estimate.value)}, 95% interval {interval(estimate)}"
        drawing.rectangle(0, top + 24, width * estimate.value, 14, "blue" if ours else "faint", radius=2, tip=tip)
        drawing.line([(width * estimate.low, top + 31), (width * estimate.high, top + 31)], "ink", 2)
        for end in (estimate.low, estimate.high):
            drawing.line([(width * end, top + 27), (width * end, top + 35)], "ink", 2)
    bottom = row * len(runs)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        anchor = "start" if share == 0 else "end" if share == 1 else "middle"
        drawing.line([(width * share, bottom - 16), (width * share, bottom - 11)], "faint")
        drawing.text(width * share, bottom + 4, f"{share:.0%}", 11, "muted", anchor)
    return drawing


def accuracy_chart(evaluation: Evaluation, narrow: bool = False) -> Drawing:
    """One row a question type, best first: a dot with its 95% interval, the baselines as hollow marks."""
    types = sorted(evaluation.types, key=lambda t: -_value(evaluation, t, MODEL))
    if narrow:
        return _narrow(evaluation, types)
    columns = [run for run in evaluation.baselines if evaluation.mean(run) is not None]
    left, right, row, top, width = 206.0, 596.0, 29.0, 72.0, 1080.0
    step = (width - 12 - right - 152) / max(1, len(columns))
    drawing = Drawing(width, top + row * len(types) + 26, "Accuracy by question type with 95% intervals and baselines")
    _legend(drawing, evaluation, left, 14, columns_per_row=5)
    drawing.text(right + 72, top - 18, "accuracy", 12, "blue", "end", bold=True)
    drawing.text(right + 152, top - 18, "95% interval", 12, "muted", "end")
    for index, run in enumerate(columns):
        drawing.text(right + 152 + step * (index + 1), top - 18, _short(run), 12, "muted", "end")
    for number, type in enumerate(types):
        y = top + row * number + row / 2
        if number % 2 == 0:
            drawing.rectangle(0, y - row / 2, width, row, "wash", opacity=0.55)
    _grid(drawing, left, right, top - 8, top + row * len(types))
    for number, type in enumerate(types):
        y = top + row * number + row / 2
        drawing.text(8, y + 4.5, shorten(evaluation.title(type), 30), 13.5)
        _marks(drawing, evaluation, type, left, right, y)
        estimate = evaluation.by_type(type)
        assert estimate is not None
        drawing.text(right + 72, y + 4.5, f"{100 * estimate.value:.1f}", 13.5, "ink", "end", bold=True)
        drawing.text(right + 152, y + 4.5, f"{100 * estimate.low:.0f} – {100 * estimate.high:.0f}", 13, "muted", "end")
        for index, run in enumerate(columns):
            other = evaluation.by_type(type, run)
            if other is not None:
                drawing.text(right + 152 + step * (index + 1), y + 4.5, f"{100 * other.value:.1f}", 13, "muted", "end")
    return drawing


def _narrow(evaluation: Evaluation, types: list[str]) -> Drawing:
    width, row = 360.0, 46.0
    marked = [run for run in evaluation.baselines if any(evaluation.by_type(t, run) for t in types)]
    top = 16.0 + 20 * ((len(marked) + 2) // 2)
    drawing = Drawing(width, top + row * len(types) + 30, "Accuracy by question type with 95% intervals and baselines")
    _legend(drawing, evaluation, 6, 14, columns_per_row=2)
    _grid(drawing, 6, width - 6, top - 4, top + row * len(types))
    for number, type in enumerate(types):
        y = top + row * number
        estimate = evaluation.by_type(type)
        assert estimate is not None
        drawing.rectangle(0, y + 1, width, 20, "card")
        drawing.text(6, y + 16, shorten(evaluation.title(type), 30), 13.5)
        drawing.text(width - 76, y + 16, percent(estimate.value), 13.5, "ink", "end", bold=True)
        drawing.text(width - 6, y + 16, f"{100 * estimate.low:.0f} – {100 * estimate.high:.0f}", 12, "muted", "end")
        _marks(drawing, evaluation, type, 6, width - 6, y + 31)
    return drawing


def _marks(drawing: Drawing, evaluation: Evaluation, type: str, left: float, right: float, y: float) -> None:
    span = right - left
    for run in evaluation.baselines:
        other = evaluation.by_type(type, run)
        if other is not None:
            tip = f"{evaluation.title(type)}, {run_title(run)}: {percent(other.value)} ({interval(other)})"
            _mark(drawing, _MARKS.get(run, "triangle"), left + span * other.value, y, tip)
    estimate = evaluation.by_type(type)
    assert estimate is not None
    drawing.line([(left + span * estimate.low, y), (left + span * estimate.high, y)], "blue", 5, opacity=0.35)
    tip = f"{evaluation.title(type)}: {percent(estimate.value)} ({interval(estimate)}), {estimate.num} questions"
    drawing.circle(left + span * estimate.value, y, 5.5, "blue", tip=tip)


def _mark(drawing: Drawing, mark: str, x: float, y: float, tip: str = "") -> None:
    if mark == "diamond":
        drawing.area([(x, y - 6), (x + 6, y), (x, y + 6), (x - 6, y)], "card", stroke="orange", width=1.8, tip=tip)
    elif mark == "square":
        drawing.rectangle(x - 4.5, y - 4.5, 9, 9, "card", "muted", 1.6, tip=tip)
    elif mark == "tick":
        drawing.rectangle(x - 1.2, y - 8, 2.4, 16, "ink", opacity=0.75, tip=tip)
    else:
        drawing.area([(x, y - 6), (x + 6, y + 5), (x - 6, y + 5)], "card", stroke="green", width=1.8, tip=tip)


def _legend(drawing: Drawing, evaluation: Evaluation, x: float, y: float, columns_per_row: int) -> None:
    entries = [(MODEL, "this model, 95% interval"), *((run, run_title(run)) for run in evaluation.baselines)]
    across = x
    for number, (run, label) in enumerate(entries):
        if columns_per_row == 2:
            across, down = x + (number % 2) * 178, y + 20 * (number // 2)
        else:
            down = y
        if run == MODEL:
            drawing.line([(across, down), (across + 20, down)], "blue", 5, opacity=0.35)
            drawing.circle(across + 10, down, 5.5, "blue")
        else:
            _mark(drawing, _MARKS.get(run, "triangle"), across + 10, down)
        drawing.text(across + 26, down + 4.5, label, 12.5, "muted")
        across += 46 + 6.6 * len(label)


def _grid(drawing: Drawing, left: float, right: float, top: float, bottom: float) -> None:
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = left + (right - left) * share
        drawing.line([(x, top), (x, bottom)], "line")
        anchor = "middle"
        if left < 20:
            anchor = "start" if share == 0 else "end" if share == 1 else "middle"
        drawing.text(x, bottom + 18, f"{share:.0%}", 11.5, "muted", anchor)


def _value(evaluation: Evaluation, type: str, run: str) -> float:
    estimate = evaluation.by_type(type, run)
    return estimate.value if estimate is not None else 0.0


def _short(run: str) -> str:
    return {TEXT_ONLY: "text-only", BLIND: "shuffled", MOST_FREQUENT: "constant"}.get(run, run_title(run))
