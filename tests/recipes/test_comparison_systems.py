"""Systems compared on the desk: each keeps its stages, all start from the same parts, and rows go on where they stopped."""

import json
import shutil
from dataclasses import replace
from io import StringIO

import pytest
import torch
from rich.console import Console
from told_comparison import Told

from weft.core.errors import ConfigError
from weft.data.datasets.subset import Subset
from weft.evaluation.benchmarks.desk import DeskBenchmark
from weft.recipes import comparison_shared, comparison_system_plan, comparison_systems
from weft.recipes.catalogue import tiny_names, tiny_recipe
from weft.recipes.comparison import compare
from weft.recipes.comparison_progress import ComparisonProgress
from weft.recipes.comparison_shared import ASKED, TYPES
from weft.recipes.comparison_system_plan import SEVERAL_SEEDS, SystemsPlan, system_tokenizer
from weft.recipes.comparison_work import row_folder
from weft.recipes.desk import VOCABULARY
from weft.serving.cli import run as weft
from weft.systems.accounting import on_meta
from weft.systems.multimodal_lm import MultimodalSystem
from weft.training.freezing import freeze
from weft.training.interrupts import TrainingInterrupted
from weft.training.model_folder import read_weights
from weft.training.trainer import check_recipe

STEPS = 5


@pytest.fixture(scope="module")
def every():
    return SystemsPlan(steps=STEPS)


def test_every_system_that_sees_pictures_takes_part_and_the_others_say_why_not(every):
    names = {candidate.name for candidate in every.candidates}
    seeing = {
        name for name in tiny_names()
        if isinstance(system := tiny_recipe(name).system, MultimodalSystem.Config) and set(system.streams) == {"image"}
    }  # fmt: skip
    assert names == seeing | {"blip-2-t5"} and set(every.left_out) == set(tiny_names()) - seeing
    assert all(every.left_out.values())


def test_one_system_of_each_family_has_three_seeds(every):
    several = {c.name: c.family for c in every.candidates if len(c.seeds) == 3}
    assert set(several) == set(SEVERAL_SEEDS) and all(len(c.seeds) == 1 for c in every.candidates if c.name not in several)
    assert sorted(several.values()) == sorted({c.family for c in every.candidates})
    assert [c.seeds for c in SystemsPlan(steps=STEPS, seeds=(4, 2)).candidates] == [(4, 2)] * len(every.candidates)


def test_every_row_can_be_trained_from_the_shared_runs(every):
    for run in every.shared:
        check_recipe(run)
    for candidate in every.candidates:
        check_recipe(candidate.recipe)
        fewer = candidate.name in ("llava-next", "mof-llava")  # more than a hundred tokens a picture
        assert every.steps_of(candidate) == max(4 if fewer else STEPS, len(every.own_stages(candidate)))


def test_a_system_keeps_its_stages_and_what_they_train(every):
    """A part trains in a stage of the comparison iff it trains in that stage of the recipe's tiny form."""

    def trained(stage):
        system = on_meta(stage.system)
        names = dict.fromkeys(("streams.image.encoder", "streams.image.projector", "language_model", "gates", "experts"), False)
        for name in freeze(system, stage.train):
            part = "gates" if "before_attention" in name else "experts" if ".routes." in name else name
            names |= {key: True for key in names if part == key or part.startswith(f"{key}.")}
        return names

    for candidate in every.candidates:
        published = tiny_recipe(candidate.name.removesuffix("-t5"))
        theirs, ours = ([stage.name for stage in recipe.stages] for recipe in (published, candidate.recipe))
        assert [name for name in ours if name in theirs] == theirs, "BLIP-2's first stage is shared, the others are a row's own"
        assert set(ours) - set(theirs) <= {stage.name for stage in every.shared_stages}
        for theirs in published.stages:
            ours = candidate.recipe.stage(theirs.name)
            assert trained(ours) == trained(theirs), f"{candidate.name}, {ours.name}"
            assert type(ours.objective) is type(theirs.objective)


def test_what_everything_takes_is_known_before_it_starts(every):
    told = ComparisonProgress(Console(file=StringIO()), every.pieces, every.num_questions)
    assert len(told.pieces) == 1 + len(every.rows) and all(seconds > 0 for seconds in told.pieces)


def test_all_systems_are_asked_the_same_in_the_same_words(every):
    lasts = [candidate.recipe.stages[-1] for candidate in every.candidates]
    assert all(stage.data.mix == ASKED for stage in lasts) and set(TYPES) < set(ASKED)
    assert {stage.processor.template for c in every.candidates for stage in every.own_stages(c)} == {"compact"}
    words = system_tokenizer(100)
    assert words.vocabulary == VOCABULARY and "<image>" not in words.special


def plan(**changed):
    return SystemsPlan(**{"steps": STEPS, "seeds": (0,), "only": ("llava", "flamingo"), "questions_per_type": 2} | changed)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Few steps of small batches and short answers: no law below depends on them."""
    words, real, asked = system_tokenizer(100), comparison_shared.shared_stages, comparison_shared.questions

    def few():
        small = {n: replace(s, steps=2, batch_size=min(s.batch_size, 16)) for n, s in real().items()}
        return {n: replace(s, validation=Subset.Config(of=s.validation, stop=16)) for n, s in small.items()}

    def a_few(split, *args, **kwargs):
        data = asked(split, *args, **kwargs)
        return data if split == "train" else Subset.Config(of=data, stop=16)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison_system_plan, "system_tokenizer", lambda: words)
        for module in (comparison_system_plan, comparison_systems):
            patch.setattr(module, "shared_stages", few)
        patch.setattr(comparison_systems, "questions", a_few)
        patch.setattr(comparison_systems, "BATCH", 4)
        patch.setattr(DeskBenchmark, "max_new_tokens", 4)
        patch.setattr(DeskBenchmark, "most_frequent", lambda self: {})
        comparison_system_plan._systems.cache_clear()
        yield
    comparison_system_plan._systems.cache_clear()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder, told = tmp_path_factory.mktemp("systems"), Told(plan())
    return folder, compare(plan(), folder, told), told


def test_rows_start_from_the_shared_tower_and_language_model(straight):
    folder, _, told = straight
    assert {stage for label, stage, _ in told.trained if label == "shared stages"} == {"tower", "language", "text_only"}
    tower, model = (
        read_weights(folder / "shared" / name / "stages" / name / "model.safetensors") for name in ("tower", "language")
    )
    trained = read_weights(row_folder(folder, "flamingo", 0) / "model" / "model.safetensors")  # both stay frozen
    for name, tensor in trained.items():
        if name.startswith("streams.image.encoder."):
            assert torch.equal(tensor, tower[name.replace("streams.image.encoder.", "media.")])
        if name.startswith("language_model.") and "before_attention" not in name:
            assert torch.equal(tensor, model[name])


def test_the_table_has_families_shares_types_and_baselines(straight):
    folder, found, _ = straight
    assert {f.row.candidate: f.row.family for f in found.findings} == {"llava": "tokens", "flamingo": "gated cross-attention"}
    saved = json.loads((folder / "comparison.json").read_text())
    for entry in saved["candidates"]:
        (row,) = entry["rows"]
        assert set(row["by_type"]) == set(TYPES)
        assert all({"model", "blind", "text_only"} <= set(scores) for scores in row["by_type"].values())
        assert all(0 < share < 1 for share in row["trained"].values())
    llava = next(f.row for f in found.findings if f.row.candidate == "llava")
    assert list(llava.trained) == ["align", "instruct"] and llava.trained["align"] < 0.05 < llava.trained["instruct"]
    assert llava.tokens == 64 and next(f.row for f in found.findings if f.row.candidate == "flamingo").tokens == 16
    assert {p.suffix for p in folder.glob("comparison.*")} == {".md", ".json", ".png", ".svg"}
    assert "| text-only model |" in (folder / "comparison.md").read_text()


def test_an_interrupted_row_goes_on_and_another_choice_of_systems_finds_what_is_there(straight, tmp_path):
    for done in ("shared", "rows/llava-0"):
        shutil.copytree(straight[0] / done, tmp_path / done)
    alone = plan(only=("flamingo",))
    strike = ("flamingo, seed 0", "train", 2)
    with pytest.raises(TrainingInterrupted, match="the same command goes on"):
        compare(alone, tmp_path, Told(alone, strike))
    told = Told(plan())
    resumed = compare(plan(), tmp_path, told)
    assert told.trained == [("flamingo, seed 0", "train", step) for step in range(3, STEPS + 1)]
    for ours, theirs in zip(resumed.rows, straight[1].rows, strict=True):
        assert (ours.loss, ours.by_type) == (theirs.loss, theirs.by_type)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--only", "flamigo"), "did you mean 'flamingo'"),
        (("--only", "clip"), "answers no questions"),
        (("--seeds", "none"), "how many, as in 3"),
        (("--seeds", "0"), "how many, as in 3"),
    ],
)
def test_a_mistake_is_one_line_with_a_way_out(capsys, tmp_path, arguments, line):
    assert weft(["compare", "systems", *arguments, "--out", str(tmp_path / "c")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and line in said[0]
    assert not (tmp_path / "c").exists()


def test_a_language_model_without_a_form_for_the_desk_stays_out():
    from weft.language_models.gpt_neox import GptNeox

    system = replace(tiny_recipe("llava").system, language_model=GptNeox.Config.tiny())
    with pytest.raises(ConfigError, match="no size for the desk"):
        comparison_systems.system_at_desk(system)
