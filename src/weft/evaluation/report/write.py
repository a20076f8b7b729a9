"""Writing the report: the page and its figures, each whole or not at all."""

from __future__ import annotations

from pathlib import Path

from weft.evaluation.report.content import ReportContent
from weft.evaluation.report.curves import curve_chart
from weft.evaluation.report.drawing import Drawing
from weft.evaluation.report.page import page
from weft.evaluation.report.pictures import gallery_sheet, gaze_sheet
from weft.evaluation.report.scores import accuracy_chart, verdict_chart
from weft.evaluation.report.weave import weave_drawing

PAGE = "report.html"


def write_report(content: ReportContent, folder: str | Path, figures: bool = True) -> Path:
    """Write `report.html` and, with `figures`, one PNG a figure into a folder; returns the page's path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{PAGE}.partial"
    temporary.write_text(page(content), encoding="utf-8")
    path = folder / PAGE
    temporary.replace(path)
    if figures:
        for name, drawing in _figures(content).items():
            drawing.png(folder / f"{name}.png")
    return path


def _figures(content: ReportContent) -> dict[str, Drawing]:
    figures = {"verdict": verdict_chart(content.evaluation), "accuracy": accuracy_chart(content.evaluation)}
    if content.weave is not None:
        figures["weave"] = weave_drawing(content.weave)
    for curve in content.curves:
        figures[f"loss-{_file_name(curve.stage)}"] = curve_chart(curve)
    if content.exhibits:
        figures["gallery"] = gallery_sheet(content.exhibits)
    if content.gazes:
        figures["attention"] = gaze_sheet(content.gazes)
    return figures


def _file_name(stage: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in stage)
