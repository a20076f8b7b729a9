"""Fusions compared on the desk: every published form and every new part takes part, and a row differs by its fusion alone."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from told_comparison import Told, small_desk

from weft.core.catalogue import parts
from weft.core.errors import ConfigError
from weft.core.interfaces import Fusion
from weft.fusion.token_concatenation import TokenConcatenation
from weft.recipes import comparison_fusions
from weft.recipes.catalogue import tiny_names, tiny_recipe
from weft.recipes.comparison import compare
from weft.recipes.comparison_candidates import QUICK
from weft.recipes.comparison_fusions import family, fusion_forms
from weft.recipes.comparison_plan import PartsPlan
from weft.recipes.comparison_row import load_row
from weft.recipes.comparison_work import row_folder
from weft.recipes.desk import SEEING
from weft.systems.accounting import num_parameters, on_meta
from weft.systems.multimodal_lm import MultimodalSystem
from weft.training.freezing import freeze
from weft.training.model_folder import read_weights
from weft.training.taking import take
from weft.training.trainer import check_recipe

STEPS = 2
ROWS = ("flamingo", "cogvlm")


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Two layers, so that every form of cross-attention finds its place; no law below depends on more."""
    with small_desk(num_layers=2):
        yield


def plan(**changed):
    return PartsPlan(**{"room": "fusions", "steps": STEPS, "seeds": (0,), "questions_per_type": 2} | changed)


def test_every_published_kind_of_fusion_takes_part_and_every_part_of_the_catalogue():
    forms, left_out = fusion_forms()
    published = {
        tuple(type(fusion) for fusion in system.fusions)
        for name in tiny_names()
        if isinstance(system := tiny_recipe(name).system, MultimodalSystem.Config) and set(system.streams) == {"image"}
    }
    assert {tuple(type(fusion) for fusion in form.fusions) for form in forms.values()} == published
    assert set(forms) >= {"token_concatenation", "flamingo", "idefics", "llama-3.2-vision", "mono-internvl", "cogvlm"}
    taking_part = {type(fusion) for form in forms.values() for fusion in form.fusions}
    assert taking_part == {cls.Config for cls in parts("fusion").values()} and not left_out
    everything = plan(seeds=None)
    assert {c.name: c.family for c in everything.candidates if len(c.seeds) == 3} == {
        "token_concatenation": "tokens", "flamingo": "gated cross-attention", "cogvlm": "visual expert"
    }  # fmt: skip
    assert set(QUICK["fusions"]) <= set(forms)


def test_a_new_fusion_takes_part_by_existing_or_says_why_not(monkeypatch):
    class Interleaving(TokenConcatenation):
        @dataclass(frozen=True, kw_only=True)
        class Config(TokenConcatenation.Config):
            pass

    class Refusing(Fusion):
        @dataclass(frozen=True, kw_only=True)
        class Config(TokenConcatenation.Config):
            def build(self):
                raise ConfigError("it takes a larger desk")

    new = {"interleaving": Interleaving, "refusing": Refusing}
    monkeypatch.setattr(comparison_fusions, "parts", lambda room: parts(room) | new)
    forms, left_out = fusion_forms.__wrapped__()
    assert forms["interleaving"].fusions == (Interleaving.Config(),) and "interleaving" not in left_out
    assert left_out == {"refusing": "cannot be built for the desk: it takes a larger desk"}
    assert set(forms) == {*fusion_forms()[0], "interleaving"}


def test_rows_differ_by_the_fusion_and_the_rates_of_its_gates_alone():
    every = plan()
    for candidate in every.candidates:
        check_recipe(candidate.recipe)
        for ours, theirs in zip(candidate.recipe.stages, every.recipe.stages, strict=True):
            plain = replace(ours, takes=theirs.takes, new=theirs.new, optimizer=replace(ours.optimizer, rates={}))
            if plain.name in {stage.name for stage in every.own_stages(candidate)}:
                assert plain.system.fusions == fusion_forms()[0][candidate.name].fusions
                plain = replace(plain, system=replace(plain.system, fusions=SEEING.fusions))
            assert plain == theirs
            assert set(ours.optimizer.rates) <= {"*_gate"}
    tokens = next(candidate for candidate in every.candidates if candidate.name == "token_concatenation")
    assert tokens.recipe == every.recipe, "the desk as it is"


def test_what_a_row_starts_from_is_the_language_model_and_experts_are_copies_of_it():
    for candidate in plan().candidates:
        (align, *_) = plan().own_stages(candidate)
        torch.manual_seed(0)
        source = {name: candidate.recipe.stage(name).system.build().state_dict() for name in align.takes}
        torch.manual_seed(1)
        system = align.system.build()
        take(align, system, source.__getitem__)
        language = source["language"]
        for name, tensor in system.state_dict().items():
            beside = name.replace(".routes.visual", "")
            if beside in language:
                assert torch.equal(tensor, language[beside]), f"{candidate.name}: {name}"
            else:
                assert ".before_attention." in name or name.startswith("streams."), f"{candidate.name}: {name}"
        added = [name for name in freeze(system, align.train) if "before_attention" in name or ".routes." in name]
        assert bool(added) == (candidate.family != "tokens"), "what a fusion adds is trained"


def test_a_row_of_each_family_is_trained_and_its_parameters_are_the_fusions_own(tmp_path):
    rows = plan(only=ROWS)
    found = compare(rows, tmp_path, told := Told(rows))
    assert {stage for label, stage, _ in told.trained if label == "shared stages"} == {"tower", "language"}
    entries = {entry["name"]: entry for entry in json.loads((tmp_path / "comparison.json").read_text())["candidates"]}
    for candidate in rows.candidates:
        row = load_row(row_folder(tmp_path, candidate.name, 0))
        assert entries[candidate.name]["rows"][0]["parameters"] == row.parameters
        model = read_weights(row_folder(tmp_path, candidate.name, 0) / "model" / "model.safetensors")
        added = {name: t for name, t in model.items() if ".before_attention." in name or ".routes." in name}
        assert row.parameters == sum(tensor.numel() for tensor in added.values()) > 0
        assert row.parameters == num_parameters(on_meta(candidate.recipe.system)) - num_parameters(on_meta(rows.recipe.system))
        assert row.tokens == 16 and row.family == family(candidate.recipe.system.fusions)
        assert any(t.abs().max() > 0 for name, t in added.items() if name.endswith("_gate")) == (candidate.name == "flamingo")
    assert "| cogvlm | visual expert |" in found.markdown()
