"""Parts compared on the desk: what is shared, what resumes, what counts, and that the table says what the rows measured."""

import json
import shutil
from dataclasses import asdict, replace
from io import StringIO

import pytest
import torch
from rich.console import Console
from told_comparison import Told, small_desk

from weft.core.catalogue import parts
from weft.core.errors import RunError
from weft.evaluation.statistics import Estimate
from weft.projectors.positioned import Positioned
from weft.recipes import desk
from weft.recipes.comparison import compare
from weft.recipes.comparison_candidates import FUSIONS, PLACES, QUICK, SEVERAL_SEEDS, parts_of_room
from weft.recipes.comparison_plan import PartsPlan
from weft.recipes.comparison_plot import spread
from weft.recipes.comparison_row import Measures, Row, load_row
from weft.recipes.comparison_system_plan import SYSTEMS, plan_of
from weft.recipes.comparison_table import Comparison, Finding
from weft.recipes.comparison_work import row_folder
from weft.recipes.conditions import Conditions
from weft.serving.cli import run as weft
from weft.serving.commands.compare import _seeds
from weft.training.interrupts import TrainingInterrupted
from weft.training.logging import stage_seconds
from weft.training.progress import StageEnd, StageStart

STEPS = 2
MEASURED = {"training_seconds", "peak_memory_bytes", "conditions"}  # of the machine, not of the model


@pytest.fixture(scope="module", autouse=True)
def quick():
    """No law below depends on any of it."""
    with small_desk():
        yield


def plan(**changed):
    return PartsPlan(
        **{"room": "projectors", "steps": STEPS, "seeds": (0,), "only": ("linear", "ldpv2"), "questions_per_type": 2} | changed
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder, told = tmp_path_factory.mktemp("straight"), Told(plan())
    return folder, compare(plan(), folder, told), told


def figures(row):
    return {name: value for name, value in asdict(row).items() if name not in MEASURED}


def test_an_interrupted_comparison_goes_on_with_the_same_figures(straight, tmp_path):
    for done in ("shared", "rows/linear-0"):
        shutil.copytree(straight[0] / done, tmp_path / done)
    last = plan().recipe.stages[-1].name
    strike = ("ldpv2, seed 0", last, 1)
    stopped = Told(plan(), strike)
    with pytest.raises(TrainingInterrupted, match="the same command goes on"):
        compare(plan(), tmp_path, stopped)
    assert {label for label, _, _ in stopped.trained} == {"ldpv2, seed 0"} and stopped.trained[-1] == strike
    told = Told(plan())
    resumed = compare(plan(), tmp_path, told)
    assert told.trained == [("ldpv2, seed 0", last, 2)], "finished rows and taken steps are not trained again"
    assert [figures(row) for row in resumed.rows] == [figures(row) for row in straight[1].rows]
    ldpv2 = row_folder(tmp_path, "ldpv2", 0)
    took = stage_seconds(ldpv2)
    assert list(took) == [stage.name for stage in plan().own_stages(plan().candidates[1])]
    assert load_row(ldpv2).training_seconds == pytest.approx(sum(took.values())), "all sessions together"


def test_a_row_says_what_it_was_trained_with(straight, tmp_path):
    here = Conditions.here(torch.device("cpu"))
    (made,) = load_row(row_folder(straight[0], "linear", 0)).conditions
    assert replace(made, commit=here.commit) == here, "a checkout may have moved on since"
    assert {row.conditions for row in straight[1].rows} == {(made,)}
    assert f"- all rows: {made}, {made.date}" in (straight[0] / "comparison.md").read_text()

    def trained(*sessions):
        """A stage of two steps, by a session for each of these conditions and the first step that it takes."""
        for now, step in sessions:
            measures = Measures(tmp_path, torch.device("cpu"), now)
            measures.on_stage_start(StageStart("look", "", 0, 1, 2, step, 1, 1))
        measures.on_stage_end(StageEnd("look", 1.0, tmp_path))
        return Measures(tmp_path, torch.device("cpu"), here).conditions

    other = replace(here, hardware="another machine")
    assert trained((other, 0), (here, 1)) == (other, here)
    assert trained((other, 0), (here, 0)) == (here,), "the first session kept no step"
    assert trained((here, 0), (replace(here, date="2020-01-01"), 1)) == (here,)


def test_rows_that_older_versions_finished_are_taken_as_they_are(straight, tmp_path):
    row = load_row(row_folder(straight[0], "linear", 0))
    for name in ("row.json", "metrics.jsonl"):
        shutil.copy2(row_folder(straight[0], "linear", 0) / name, tmp_path / name)
    saved = json.loads((tmp_path / "row.json").read_text())
    del saved["conditions"]
    (tmp_path / "row.json").write_text(json.dumps(saved | {"training_seconds": None}))
    older = load_row(tmp_path)
    assert older == replace(row, conditions=()), "its metrics tell the time of a row that was resumed"
    assert "all rows: not recorded" in Comparison("projectors", "9 steps", 100, [older]).markdown()
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match="its time is not known"):
        load_row(tmp_path)


def test_a_finished_comparison_trains_nothing(straight):
    folder, before, _ = straight
    told = Told(plan())
    assert list(compare(plan(), folder, told).rows) == list(before.rows)
    assert told.trained == []


def test_another_budget_does_not_mix_with_it(straight):
    with pytest.raises(RunError, match="another recipe"):
        compare(plan(steps=STEPS + 1), straight[0], Told(plan()))
    with pytest.raises(RunError, match="2 questions a type, not 3"):
        compare(plan(questions_per_type=3), straight[0], Told(plan()))


def test_every_row_starts_from_the_same_shared_stages(straight):
    folder, _, told = straight
    (run,) = plan().shared
    shared = [stage.name for stage in run.stages]
    assert shared and {stage for label, stage, _ in told.trained if label == "shared stages"} == set(shared)
    assert not {stage for label, stage, _ in told.trained if label != "shared stages"} & set(shared)
    for stage in shared:
        first, *others = (
            (place / "stages" / stage / "model.safetensors").read_bytes()
            for place in (folder / "shared" / run.name, row_folder(folder, "linear", 0), row_folder(folder, "ldpv2", 0))
        )
        assert all(other == first for other in others)


def test_the_table_says_what_the_rows_measured(straight):
    folder, *_ = straight
    saved = json.loads((folder / "comparison.json").read_text())
    lines = (folder / "comparison.md").read_text().splitlines()
    for entry in saved["candidates"]:
        place = row_folder(folder, entry["name"], 0)
        row, record = load_row(place), json.loads((place / "row.json").read_text())
        assert entry["rows"] == [record | {"learned": row.learned, "reason": row.reason}]
        evaluation = json.loads((place / "evaluation" / "evaluation.json").read_text())
        assert evaluation["mean"]["model"]["value"] == pytest.approx(row.accuracy.value, abs=1e-6)
        assert evaluation["mean"]["blind"]["value"] == pytest.approx(row.shuffled.value, abs=1e-6)
        cells = [cell.strip() for cell in next(line for line in lines if line.startswith(f"| {row.candidate} ")).split("|")]
        assert {f"{row.tokens}", f"{100 * row.shuffled.value:.1f}", f"{row.training_flops / 1e9:.2f}"} <= set(cells)
    assert {p.suffix for p in folder.glob("comparison.*")} == {".md", ".json", ".png", ".svg"}


@pytest.mark.parametrize(("width", "seeds"), [(80, False), (120, True)])
def test_the_table_fits_a_terminal(width, seeds):
    names = [c.name for room in (*PLACES, SYSTEMS) for c in plan_of(room, steps=999).candidates]
    costs = {"tokens": 64, "parameters": 999_000, "training_flops": 10**9, "training_seconds": 3599.0}
    rows = [row(seed=seed, candidate=max(names, key=len), **costs) for seed in range(3)]
    said = Console(file=StringIO(), width=width)
    said.print(Comparison("projectors", "9 steps", 100, rows).terminal_table(width))
    head, line = said.file.getvalue().splitlines()
    assert rows[0].candidate in line and " 59:59 " in line and line.rstrip().endswith(" 1.00")
    assert ("80.0 80.0 80.0" in line) == seeds and max(len(head.rstrip()), len(line.rstrip())) <= width
    assert "…" not in head + line, "nothing is cut"


def row(accuracy=0.8, shuffled=0.2, seed=0, loss=1.0, **changed):
    def sure(value):
        return Estimate(value, value - 0.02, value + 0.02, 1600)

    fields = {"candidate": "linear", "family": "", "steps": 9, "questions_per_type": 100, "tokens": 64, "parameters": 25_000}
    fields |= {"trained": {"align": 0.025, "instruct": 0.5}, "text_only": sure(0.1), "most_frequent": None}
    fields["by_type"] = {"count": {"model": sure(accuracy), "blind": sure(shuffled), "text_only": sure(0.1)}}
    fields |= {"forward_flops": 10**8, "training_flops": 3 * 10**8, "training_seconds": 60.0, "peak_memory_bytes": 2**30}
    estimates = {"accuracy": sure(accuracy), "shuffled": sure(shuffled), "gain": sure(accuracy - shuffled)}
    return Row(**fields | estimates | {"seed": seed, "loss": loss, "text_only_loss": 2.0} | changed)


def test_a_row_counts_only_once_it_has_learned_to_look():
    assert row(0.41, 0.2).learned and row(0.41, 0.2).reason == ""
    assert not row(0.25, 0.25 - 0.2).learned, "exactly 20 points are not more than 20"
    plateau, fell = row(0.3, 0.25, loss=1.98), row(0.3, 0.25, loss=1.2)
    assert "loss 1.980 is still at its plateau (2.000 without pictures)" in plateau.reason
    assert "loss 1.200 has left its plateau" in fell.reason and "+5.0 points" in fell.reason
    table = Comparison("projectors", "9 steps", 100, [plateau])
    assert "| linear | not learned | - |" in table.markdown(), "parts have no family, and no column for it"
    systems = Comparison("systems", "9 steps", 100, [replace(plateau, family="tokens"), row(candidate="b")])
    assert "| linear | tokens | not learned | - |" in systems.markdown() and "| b |  | 80.0 " in systems.markdown()
    assert "| 2.5 50 |" in table.markdown(), "the share of parameters that each stage trains"
    assert table.notes["Not learned"] == [f"linear, seed 0: {plateau.reason}"]


def test_the_median_seed_stands_for_a_candidate_and_every_seed_is_listed():
    found = Finding((row(0.70), row(0.30, seed=1), row(0.80, seed=2)))
    assert found.row.accuracy.value == 0.70 and found.seeds == "70.0 - 80.0", "of two that learned the lower one"
    found = Finding((row(0.70), row(0.75, seed=1), row(0.80, seed=2)))
    assert found.row.seed == 1 and found.seeds == "70.0 75.0 80.0"


def test_the_time_of_a_candidate_is_that_of_the_seed_that_was_disturbed_least():
    found = Finding((row(0.7, training_seconds=80.0), row(0.75, seed=1), row(0.8, seed=2, training_seconds=70.0)))
    assert found.training_seconds == 60.0
    assert "| 1:00 |" in Comparison("projectors", "9 steps", 100, found.rows).markdown()


def test_candidates_that_learned_stand_first_the_most_accurate_on_top():
    rows = [row(0.3, candidate="a"), row(0.6, candidate="b"), row(0.9, candidate="c")]
    assert [f.row.candidate for f in Comparison("projectors", "9 steps", 100, rows).findings] == ["c", "b", "a"]


def test_the_table_says_which_rows_were_made_with_what():
    one = Conditions("0.1.0", "abc1234", "a fast processor, 2 threads, torch 2.12", "2026-11-22")
    rows = [row(0.9, candidate="a", conditions=(one,)), row(0.8, candidate="b", conditions=(replace(one, date="2026-11-23"),))]
    made = "weft 0.1.0 (abc1234), a fast processor, 2 threads, torch 2.12"
    alike = Comparison("projectors", "9 steps", 100, rows, command="weft compare projectors --steps 9")
    assert alike.notes["Made with"] == ["`weft compare projectors --steps 9`", f"all rows: {made}, 2026-11-22 to 2026-11-23"]
    slow = replace(one, commit="", hardware="a slow processor")
    more = [row(0.7, candidate="c", conditions=(one, slow)), row(0.6, candidate="d", seed=1), row(0.5, candidate="e")]
    remark, *lines = Comparison("projectors", "9 steps", 100, rows + more).notes["Made with"]
    assert remark == "not all rows were made alike, so times and memory compare only within a line"
    assert lines == [
        f"a 0, b 0: {made}, 2026-11-22 to 2026-11-23",
        f"c 0: {made}; then weft 0.1.0, a slow processor, 2026-11-22",
        "d 1, e 0: not recorded",
    ]


@pytest.mark.parametrize("seeds", [None, (0,), (0, 1, 2), (4,), (4, 2)])
def test_the_command_beside_a_table_makes_the_same_plan(seeds):
    command = plan(seeds=seeds).command
    options = command.removeprefix("weft compare projectors ").split()
    words = dict(zip(options[::2], options[1::2], strict=True))
    assert words["--steps"] == f"{STEPS}" and words["--questions"] == "2"
    assert words["--only"] == "linear,ldpv2" and _seeds(words.get("--seeds")) == seeds


def test_every_type_has_its_interval_beside_the_baselines_that_all_rows_share():
    lines = Comparison("projectors", "9 steps", 100, [row(0.3, 0.25)]).markdown().splitlines()
    assert "| linear | 30 (28-32) |" in lines, "also of a row that has not learned to look"
    assert "| text-only model | 10 (8-12) |" in lines and "| most frequent answer |  |" in lines


@pytest.mark.parametrize("room", [room for room in PLACES if room != FUSIONS])
def test_every_part_of_a_room_takes_part_or_says_why_not(room):
    chosen, left_out = parts_of_room(room, desk.desk())
    assert sorted([*(c.name for c in chosen), *left_out]) == sorted(parts(room))
    assert all(left_out.values())
    assert set(QUICK[room]) <= {c.name for c in chosen}
    everything = plan(room=room, only=None, seeds=None)
    names = {stage.name for stage in everything.recipe.stages}
    for candidate in everything.candidates:
        own = everything.own_stages(candidate)
        assert {s.name for s in own} | {s.name for s in everything.shared_stages} == names
        stream = own[-1].system.streams["image"]
        assert isinstance(stream.projector, Positioned.Config) and stream.projector.capacity == stream.num_tokens
    if room == "projectors":
        assert {c.name: len(c.seeds) for c in everything.candidates} == {
            c.name: 3 if c.name in SEVERAL_SEEDS else 1 for c in chosen
        }


def test_the_recipes_own_words_have_room_beside_more_tokens():
    by_name = {c.name: plan(only=None).own_stages(c)[-1] for c in plan(only=None).candidates}
    more = by_name["linear"].system.num_positions("image") - by_name["pixel_shuffle"].system.num_positions("image")
    assert more == 48 and by_name["linear"].max_tokens - by_name["pixel_shuffle"].max_tokens == more


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("projctors",), "did you mean 'projectors'"),
        (("projectors", "--only", "qformer"), "did you mean 'q_former'"),
        (("projectors", "--only", "linear,tiles"), "needs pictures that were cut into tiles"),
    ],
)
def test_a_mistake_is_one_line_with_a_way_out(capsys, tmp_path, arguments, line):
    assert weft(["compare", *arguments, "-o", str(tmp_path / "c")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and line in said[0]
    assert not (tmp_path / "c").exists()


def test_numbers_of_equal_cost_stand_side_by_side():
    assert spread([50.0, 50.0, 50.0], 10, 0, 100) == [40.0, 50.0, 60.0]
    assert spread([0.0, 0.0, 90.0], 10, 0, 100) == [0.0, 10.0, 90.0]
    squeezed = spread([5.0] * 5, 40, 0, 100)
    assert squeezed == [0.0, 25.0, 50.0, 75.0, 100.0]
