"""Configs: what they save they read back, and overrides say what is wrong."""

import json

import pytest

from weft.core import config
from weft.core.errors import ConfigError
from weft.data.images import ImageTransform
from weft.fusion.token_concatenation import TokenConcatenation
from weft.language_models.decoder import Decoder
from weft.layers.rotary import Llama3Scaling
from weft.recipes.catalogue import tiny_recipe
from weft.systems.multimodal_lm import MultimodalLM

SYSTEM = MultimodalLM.Config(language_model=Decoder.Config(rope_scaling=Llama3Scaling(factor=4.0)), streams={}, fusions=())


def test_a_config_survives_json():
    assert config.loads(config.dumps(SYSTEM)) == SYSTEM


def test_another_schema_is_refused():
    saved = json.loads(config.dumps(SYSTEM)) | {"schema": 99}
    with pytest.raises(ConfigError, match="schema 99"):
        config.loads(json.dumps(saved), "config.json")


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "weft.core.config.dumps", "weft.nowhere.Config"])
def test_a_saved_type_that_is_no_config_is_refused(name):
    with pytest.raises(ConfigError, match="not known"):
        config.from_dict({"type": name})


def test_an_unknown_field_is_refused():
    with pytest.raises(ConfigError, match="no field colour"):
        config.from_dict({**config.to_dict(TokenConcatenation.Config()), "colour": 1})


def test_overrides_go_through_fields_and_keep_types():
    changed = config.override(SYSTEM, "language_model.width", "64")
    assert changed.language_model.width == 64 and SYSTEM.language_model.width == 4096
    assert config.override(SYSTEM, "language_model.tied_head", "true").language_model.tied_head is True
    assert config.override(SYSTEM, "language_model.head_width", "none").language_model.head_width is None
    assert config.override(SYSTEM, "language_model.rope_scaling.factor", "8").language_model.rope_scaling.factor == 8.0


def test_overrides_apply_at_once_so_that_fields_may_change_together():
    stage = tiny_recipe("llava").stages[0]
    assert stage.steps is not None and stage.epochs is None
    swapped = config.override_all(stage, [("steps", "none"), ("epochs", "2"), ("optimizer.momentum", "0.5")])
    assert (swapped.steps, swapped.epochs, swapped.optimizer.momentum) == (None, 2.0, 0.5)
    assert config.override_all(stage, [("steps", "3"), ("steps", "4")]).steps == 4
    with pytest.raises(ConfigError, match="set as a whole and in part"):
        config.override_all(stage, [("optimizer", "x"), ("optimizer.momentum", "0.5")])


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("context", "many", "context='many'"),
        ("context", True, "context=True"),
        ("context", 1.5, "context=1.5"),
        ("norm_eps", None, "norm_eps=None"),
        ("tied_head", 1, "tied_head=1"),
        ("rope_scaling", 3, "rope_scaling=3"),
    ],
)
def test_a_saved_value_of_another_type_is_refused(field, value, said):
    saved = config.to_dict(Decoder.Config())
    assert field in saved
    with pytest.raises(ConfigError, match=said):
        config.from_dict(saved | {field: value})


def test_a_missing_field_is_named():
    saved = config.to_dict(SYSTEM)
    del saved["language_model"]
    with pytest.raises(ConfigError, match="lacks language_model"):
        config.from_dict(saved)


def test_whole_numbers_stand_for_fractions_and_tuples_keep_their_length():
    assert config.from_dict(config.to_dict(Decoder.Config()) | {"rope_theta": 10000}).rope_theta == 10000
    transform = config.to_dict(ImageTransform())
    with pytest.raises(ConfigError, match="cannot hold mean"):
        config.from_dict(transform | {"mean": [0.5, 0.5]})
    with pytest.raises(ConfigError, match="cannot hold resize='crop'"):
        config.from_dict(transform | {"resize": "crop"})


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("language_model.widht", "64", "did you mean width"),
        ("language_model.width", "wide", "takes int"),
        ("language_model.tied_head", "maybe", "true or false"),
        ("language_model.width.more", "1", "goes on after"),
        ("language_model", "x", "set a field inside it"),
    ],
)
def test_a_wrong_override_says_what_is_wrong(path, value, said):
    with pytest.raises(ConfigError, match=said):
        config.override(SYSTEM, path, value)
