"""Configs: what they save they read back, and overrides say what is wrong."""

import json

import pytest

from weft.core import config
from weft.core.errors import ConfigError
from weft.fusion.token_concatenation import TokenConcatenation
from weft.language_models.decoder import Decoder
from weft.layers.rotary import Llama3Scaling
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
