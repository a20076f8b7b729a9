"""Systems with blocks between a language model's layers start from a plain one: its weights go in, the blocks stay as drawn."""

import json
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from tiny_training import tokenizer

from weft.checkpoints.checkpoint_format import checkpoint_formats
from weft.checkpoints.weight_files import weights, write_weights
from weft.core.errors import CheckpointError
from weft.data.processor import Processor
from weft.layers.slots import SLOTS
from weft.recipes.catalogue import tiny_names, tiny_recipe
from weft.recipes.starting_weights import starting_weights
from weft.systems.multimodal_lm import MultimodalLM
from weft.training.model_folder import write_model_folder

LANGUAGE_MODEL = "language_model."


def between_layers(name):
    return name.startswith(LANGUAGE_MODEL) and any(f".{slot}." in name for slot in SLOTS)


def is_gated(name):
    config = tiny_recipe(name).stages[0].system
    return isinstance(config, MultimodalLM.Config) and any(map(between_layers, weights(config.build())))


GATED = [name for name in tiny_names() if is_gated(name)]


def system_of(name):
    torch.manual_seed(1)
    return tiny_recipe(name).stages[0].system.build()


def plain_model(name):
    """The language model alone, and one that says something else than a fresh system's."""
    torch.manual_seed(0)
    return MultimodalLM.Config(language_model=tiny_recipe(name).stages[0].system.language_model).build()


def as_published(system, folder):
    config = system.config.language_model
    for layout in checkpoint_formats().values():
        if any(type(tiny) is type(config) for tiny in layout.tiny()):
            with suppress(CheckpointError):  # a layout that has no place for all of it
                write_weights(folder, layout.key_map(config).from_weft(weights(system.language_model)))
                (folder / "config.json").write_text(json.dumps(layout.write_config(config)))
                return
    raise AssertionError(f"no layout holds {config}")


def as_weft(system, folder):
    write_model_folder(folder, system, Processor.Config(template="continued").build(tokenizer(), system.config))


def test_there_are_such_systems():
    assert {"flamingo", "openflamingo", "idefics", "llama-3.2-vision"} <= set(GATED)


@pytest.mark.parametrize("write", [as_published, as_weft])
@pytest.mark.parametrize("name", GATED)
def test_a_gated_system_starts_from_a_plain_language_model(name, write, tmp_path):
    plain, system = plain_model(name), system_of(name)
    write(plain, tmp_path)
    starting_weights([f"language_model={tmp_path}"])(system)
    filled, drawn = weights(plain), weights(system_of(name))
    assert any(map(between_layers, drawn))
    for each, tensor in weights(system).items():
        fresh = between_layers(each) or not each.startswith(LANGUAGE_MODEL)
        assert torch.equal(tensor, (drawn if fresh else filled)[each]), each


def test_blocks_of_a_folder_are_taken_and_must_all_be_there(tmp_path):
    config = tiny_recipe("flamingo").stages[0].system
    torch.manual_seed(0)
    other = config.build()
    as_weft(other, tmp_path)
    system = system_of("flamingo")
    starting_weights([f"language_model={tmp_path}"])(system)
    assert all(torch.equal(system.language_model.state_dict()[n], t) for n, t in other.language_model.state_dict().items())

    (fusion,) = config.fusions
    denser = replace(config, fusions=(replace(fusion, every=1),))
    with pytest.raises(CheckpointError, match=r"before_attention"):
        starting_weights([f"language_model={tmp_path}"])(denser.build())
