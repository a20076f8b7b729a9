"""The demo from nothing to report, at a few steps a stage; how well it sees is measured by running it in full."""

from io import StringIO

import pytest
from rich.console import Console

from weft.core.errors import RunError
from weft.recipes.demo import run_demo
from weft.recipes.desk import desk


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "run"
    said = StringIO()
    evaluation = run_demo(folder, 0.001, 0, Console(file=said, width=100), questions_per_type=2)
    return folder, evaluation, said.getvalue()


def test_it_leaves_a_model_an_evaluation_and_a_report(run):
    folder, evaluation, said = run
    assert set(evaluation.runs) >= {"model", "blind", "text_only", "most_frequent"}
    assert len(evaluation.types) >= 12 and evaluation.mean() is not None
    assert {p.name for p in (folder / "model").iterdir()} == {
        "config.json",
        "model.safetensors",
        "processor.json",
        "tokenizer.json",
    }
    page = (folder / "report" / "report.html").read_text()
    assert all(stage.title.split(":")[-1].strip()[:20] in page for stage in desk().stages)
    assert "weft chat" in said and "mean over types" in said


def test_a_finished_demo_is_shown_again_without_training(run):
    folder, before, _ = run
    lines = len((folder / "metrics.jsonl").read_text().splitlines())
    again = run_demo(folder, 0.001, 0, Console(file=StringIO()), questions_per_type=2)
    assert again.runs["model"] == before.runs["model"]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == lines


def test_another_demo_does_not_overwrite_it(run):
    with pytest.raises(RunError, match="another recipe"):
        run_demo(run[0], 0.5, 0, Console(file=StringIO()), questions_per_type=2)


def test_more_minutes_are_more_steps_of_every_stage():
    short, full = desk(2.0), desk(8.0)
    assert all(4 * a.steps == pytest.approx(b.steps, abs=4) for a, b in zip(short.stages, full.stages, strict=True))
