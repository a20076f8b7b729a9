"""Accuracy against what it costs: one panel a cost. Dots stand where they belong; the numbers above them make room."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from weft.evaluation.report.curves import nice_ticks
from weft.evaluation.report.drawing import LIGHT, Drawing
from weft.recipes.comparison_table import Comparison, Finding

_COSTS: tuple[tuple[str, Callable[[Finding], float | None]], ...] = (
    ("tokens per picture", lambda found: found.row.tokens),
    ("parameters, thousands", lambda found: found.row.parameters / 1e3),
    ("GFLOP per sample, forward and backward", lambda found: found.row.training_flops / 1e9),
    ("training time, minutes", lambda found: found.training_seconds / 60),
    ("peak memory, GiB", lambda found: None if (peak := found.row.peak_memory_bytes) is None else peak / 2**30),
)
_WIDE, _TALL, _GAP = 380.0, 300.0, 24.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 42.0, 16.0, 40.0, 44.0
_RADIUS = 3.6
_LABEL = 17.0  # between the numbers above a panel
_COLUMNS = 3


def comparison_plot(comparison: Comparison) -> Drawing:
    """Five panels and a key. Dots that learned to look are blue, the others hollow; bars are 95% intervals over questions."""
    panels = 2 * (_TALL + _GAP)
    width = _COLUMNS * (_WIDE + _GAP) - _GAP
    listed = 64 + 20 * (len(comparison.findings) + 3)  # the key, which may be the longest column
    drawing = Drawing(width, max(panels, _TALL + _GAP + listed) + 44, f"Accuracy of {comparison.room} against their costs")
    drawing.text(0, 16, f"{comparison.room.capitalize()} on the desk: share right against what it costs", 17, bold=True)
    for number, (title, cost) in enumerate(_COSTS):
        x, y = (number % _COLUMNS) * (_WIDE + _GAP), 44 + number // _COLUMNS * (_TALL + _GAP)
        _panel(drawing, x, y, title, comparison.findings, cost)
    number = len(_COSTS)
    _key(drawing, (number % _COLUMNS) * (_WIDE + _GAP), 44 + number // _COLUMNS * (_TALL + _GAP), comparison.findings)
    return drawing


def _panel(
    drawing: Drawing, x: float, y: float, title: str, findings: Sequence[Finding], cost: Callable[[Finding], float | None]
) -> None:
    left, right, strip, bottom = x + _LEFT, x + _WIDE - _RIGHT, y + _TOP, y + _TALL - _BOTTOM
    top = strip + 18
    costs = {number: value for number, finding in enumerate(findings, 1) if (value := cost(finding)) is not None}
    drawing.text(left, y + 22, title, 13.5, bold=True)

    def height(share: float) -> float:
        return bottom - (bottom - top) * share

    for percent in range(0, 101, 20):
        level = height(percent / 100)
        drawing.line([(left, level), (right, level)], "line")
        drawing.text(left - 7, level + 4, f"{percent}%", 11, "muted", "end")
    if not costs:
        drawing.text((left + right) / 2, (top + bottom) / 2, "not measured", 13, "muted", "middle")
        return
    ticks = nice_ticks(max(costs.values()) * 1.04)
    for tick in ticks:
        drawing.text(left + (right - left) * tick / ticks[-1], bottom + 24, f"{tick:g}", 11, "muted", "middle")
    true = {number: left + (right - left) * value / ticks[-1] for number, value in costs.items()}
    order = sorted(true, key=lambda number: (true[number], number))
    labels = spread([true[number] for number in order], _LABEL, left, right)
    for number, label in zip(order, labels, strict=True):
        row, x = findings[number - 1].row, true[number]
        colour = "blue" if row.learned else "orange"
        drawing.line([(label, strip + 4), (x, height(row.accuracy.value))], "line", 1.0)
        drawing.text(label, strip, f"{number}", 11, colour, "middle", bold=True)
    for number in order:
        row, x = findings[number - 1].row, true[number]
        colour = "blue" if row.learned else "orange"
        drawing.line([(x - 8, height(row.shuffled.value)), (x + 8, height(row.shuffled.value))], "faint", 2.0)
        drawing.line([(x, height(row.accuracy.low)), (x, height(row.accuracy.high))], colour, 1.4)
        drawing.circle(x, height(row.accuracy.value), _RADIUS, colour if row.learned else "card", colour, 1.6)


def _key(drawing: Drawing, x: float, y: float, findings: Sequence[Finding]) -> None:
    """Names by number with every seed, then what the marks mean."""
    at = y + 22
    drawing.text(x + _LEFT, at, "candidate, right in percent by seed", 13.5, bold=True)
    for number, finding in enumerate(findings, 1):
        at += 20
        colour = "ink" if finding.learned else "muted"
        drawing.text(x + _LEFT + 14, at, f"{number}", 12, "blue" if finding.learned else "orange", "end", bold=True)
        drawing.text(x + _LEFT + 24, at, finding.row.candidate, 12.5, colour)
        drawing.text(x + _WIDE - _RIGHT, at, finding.seeds if finding.learned else "not learned", 12, colour, "end")
    at += 26
    drawing.circle(x + _LEFT + 8, at - 4, 5, "blue", "blue")
    drawing.text(x + _LEFT + 24, at, "the median seed, with its 95% interval", 11.5, "muted")
    at += 18
    drawing.circle(x + _LEFT + 8, at - 4, 5, "card", "orange", 1.6)
    drawing.text(x + _LEFT + 24, at, "has not learned to look and does not count", 11.5, "muted")
    at += 18
    drawing.line([(x + _LEFT + 3, at - 4), (x + _LEFT + 13, at - 4)], "faint", 2.4)
    drawing.text(x + _LEFT + 24, at, "the same model with shuffled pictures", 11.5, "muted")


def spread(places: Sequence[float], distance: float, low: float, high: float) -> list[float]:
    """Sorted places moved as little as it takes to stand `distance` apart, and closer where there is not that much room.

    Places that are pushed together stay centred on where they were; their order stays.
    """
    if len(places) > 1:
        distance = min(distance, (high - low) / (len(places) - 1))
    groups: list[tuple[float, int]] = []  # centre, members
    for place in places:
        groups.append((place, 1))
        while True:
            centre, size = groups[-1]
            half = (size - 1) * distance / 2
            groups[-1] = (min(max(centre, low + half), high - half), size)
            if len(groups) < 2:
                break
            before, count = groups[-2]
            if groups[-1][0] - half - (before + (count - 1) * distance / 2) >= distance - 1e-9:
                break
            groups[-2:] = [((before * count + groups[-1][0] * size) / (count + size), count + size)]
    return [centre + (i - (size - 1) / 2) * distance for centre, size in groups for i in range(size)]


def standalone_svg(drawing: Drawing) -> str:
    """The drawing as a file of its own, with its colours on white."""
    paints = "".join(f".f-{role}{{fill:{code}}}.s-{role}{{stroke:{code}}}" for role, code in LIGHT.items())
    font = "font-family:Inter,'Segoe UI',Roboto,Helvetica,Arial,sans-serif"
    size = f'xmlns="http://www.w3.org/2000/svg" width="{drawing.width:g}" height="{drawing.height:g}"'
    ground = '<rect width="100%" height="100%" class="f-card"/>'
    style = f"<style>text{{{font}}}.f-none{{fill:none}}{paints}</style>{ground}"
    opening, rest = drawing.svg().split(">", 1)
    return f"{opening.replace('<svg', f'<svg {size}', 1)}>{style}{rest}\n"
