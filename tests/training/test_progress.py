import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from weft.training.progress import LiveView, PlainLines, StageEnd, StageStart, StepReport, clock, progress_view, sparkline

START = StageStart("align", "the projector learns", 0, 2, 10, 0, 1_000, 50_000)


def report(step, loss, kind="train"):
    return StepReport(
        kind, "align", step, 10, loss, {"next_token": loss}, 1e-3, 1.0, 512.0, 20_480.0, 0.03, 4.0, seconds_left=65.0
    )


def drive(view):
    view.on_stage_start(START)
    for step in range(1, 11):
        view.on_step(report(step, 5.0 - step / 4))
    view.on_step(report(10, 2.75, "validation"))
    view.on_stage_end(StageEnd("align", 12.4, Path("stages/align"), 2.5, 2.75))


def test_plain_lines_say_where_a_run_is():
    lines = []
    drive(PlainLines(lines.append, every_seconds=1e9))
    assert lines == [
        "[1/2] align: the projector learns (1,000 of 50,000 parameters train)",
        "  align step 10/10 loss 2.5000 rate 1.00e-03 512 samples/s 20,480 tokens/s data wait 3% left 1:05",
        "  align step 10/10 validation loss 2.7500",
        "  align finished in 0:12: stages/align",
    ]


@pytest.mark.parametrize(("width", "extra"), [(140, ("samples/s", "512", "data wait")), (80, ("wait",))])
def test_the_live_view_shows_its_figures_whole_on_any_terminal(width, extra):
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    view = progress_view(console)
    assert isinstance(view, LiveView)
    drive(view)
    view.on_stage_start(replace(START, name="instruct", title="stage 2: all learns", index=1, steps=1500))
    view.on_step(replace(report(1003, 4.0), stage="instruct", steps=1500))
    view.close()
    page = Console(file=io.StringIO(), width=width)
    page.print(view.render())
    text = page.file.getvalue()
    for shown in (
        "1/2 align",
        "10/10",
        "2.5000",
        "█",
        "2.7500",
        "20,480",
        "3%",
        "0:12",
        "1003/1500",
        "1:05 left",
        "stage 2: all",
        *extra,
    ):
        assert shown in text, shown
    assert "…" not in text


def test_without_a_terminal_lines_are_plain():
    console = Console(file=io.StringIO(), width=40)
    drive(progress_view(console))
    text = console.file.getvalue()
    assert "\x1b" not in text
    assert len(text.splitlines()) == 4, "long lines are not folded"


def test_a_sparkline_draws_the_fall_of_a_loss():
    assert sparkline([3.0, 2.0, 1.0]) == "█▅▁" or sparkline([3.0, 2.0, 1.0]) == "█▄▁"
    assert len(sparkline([float(i) for i in range(1000)], width=24)) == 24
    assert sparkline([]) == ""
    assert sparkline([1.0, 1.0]) == "▁▁"


def test_clock_reads_as_on_a_wall():
    assert [clock(s) for s in (0, 59.6, 61, 3661)] == ["0:00", "1:00", "1:01", "1:01:01"]
