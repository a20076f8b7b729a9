"""The report of a run: one self-contained HTML file and its figures as PNG."""

from weft.evaluation.report.content import (
    Curve,
    Exhibit,
    Gaze,
    Part,
    ReportContent,
    RunFacts,
    StageFacts,
    Weave,
    read_curves,
)
from weft.evaluation.report.write import write_report

__all__ = [
    "Curve",
    "Exhibit",
    "Gaze",
    "Part",
    "ReportContent",
    "RunFacts",
    "StageFacts",
    "Weave",
    "read_curves",
    "write_report",
]
