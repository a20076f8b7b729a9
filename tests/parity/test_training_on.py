"""A published model trains on and goes back out: what `transformers` wrote, a step of a recipe, what `transformers` reads."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reference_models import opened_silently
from test_llava_folder import write_published
from typer.testing import CliRunner

from weft.checkpoints import llama
from weft.checkpoints.checkpoint_format import checkpoint_formats
from weft.checkpoints.weight_files import weights, write_weights
from weft.core.errors import CheckpointError, ConfigError
from weft.core.interfaces import System
from weft.recipes.catalogue import tiny_recipe
from weft.recipes.loading import load_model, load_system
from weft.recipes.starting_weights import starting_weights
from weft.serving.cli import app
from weft.systems.multimodal_lm import MultimodalLM

transformers = pytest.importorskip("transformers")

LANGUAGE_MODEL, ENCODER = "language_model", "streams.image.encoder"
PARTS = (f"{LANGUAGE_MODEL}.", f"{ENCODER}.", "streams.image.projector.", "added_tokens.", "media.", "text.")
WHOLE = {
    name: (layout.tiny()[0], layout)
    for name, layout in checkpoint_formats().items()
    if isinstance(layout.tiny()[0], System.Config)
}
TOWER, LANGUAGE = "model.vision_tower.", ("model.language_model.", "lm_head.")
FROZEN = {"stages/align": (TOWER, *LANGUAGE), "model": (TOWER,)}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava-1.5-hf")
    write_published(folder)
    return folder


def settings(folder: Path) -> list[str]:
    """The recipe's tiny form at the sizes of the folder."""
    system = load_system(folder).system.config
    decoder, encoder = system.language_model, system.streams["image"].encoder
    names = ("vocabulary", "width", "num_layers", "num_heads", "num_key_value_heads", "feed_forward_width", "norm_eps")
    sizes = {f"system.language_model.{name}": getattr(decoder, name) for name in names}
    names = ("image_size", "patch_size", "width", "num_layers", "num_heads", "feed_forward_width", "feature_layer")
    sizes |= {f"system.{ENCODER}.{name}": getattr(encoder, name) for name in names}
    sizes |= {"processor.transforms.image.size": encoder.image_size, "steps": 1, "batch_size": 2, "schedule.warmup": 0}
    fields = [f"stages.{stage}.{path}={value}" for stage in ("align", "instruct") for path, value in sizes.items()]
    return [text for field in fields for text in ("--set", field)]


def weft(*arguments: object) -> None:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def run(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    weft("train", "llava-1.5", "--tiny", "-o", folder, "--from", published, "--device", "cpu", *settings(published))
    return folder


@pytest.mark.parametrize("place", FROZEN)
def test_what_trained_has_moved_and_what_was_frozen_is_bit_for_bit_as_published(published, run, tmp_path, place):
    weft("convert", run / place, tmp_path / "out", "--to", "transformers")
    before = opened_silently(published, transformers.LlavaForConditionalGeneration).state_dict()
    after = opened_silently(tmp_path / "out", transformers.LlavaForConditionalGeneration).state_dict()
    assert {name: tensor.shape for name, tensor in after.items()} == {name: tensor.shape for name, tensor in before.items()}
    same = {name for name, tensor in before.items() if torch.equal(tensor, after[name])}
    assert same == {name for name in before if name.startswith(FROZEN[place])}


def test_the_tokenizer_comes_with_the_whole_model(published, run):
    text = "USER: <image>\nwhat is 12 + 30? 你好 ASSISTANT:"
    expected = load_model(published).processor.tokenizer
    assert load_model(run).processor.tokenizer.encode(text) == expected.encode(text)


@pytest.mark.parametrize("name", WHOLE)
def test_a_part_comes_out_of_the_folder_of_a_whole_model(tmp_path, name):
    (config, layout) = WHOLE[name]
    torch.manual_seed(0)
    whole = config.build()
    write_weights(tmp_path, layout.key_map(config).from_weft(weights(whole)))
    (tmp_path / "config.json").write_text(json.dumps(layout.write_config(config)))
    filled = weights(whole)
    for part in sorted({name.rpartition(".")[0] for name in PARTS if any(each.startswith(name) for each in filled)}):
        torch.manual_seed(1)
        fresh = config.build()
        drawn = {name: tensor.clone() for name, tensor in weights(fresh).items()}
        starting_weights([f"{part}={tmp_path}"])(fresh)
        for each, tensor in weights(fresh).items():
            assert torch.equal(tensor, (filled if each.startswith(f"{part}.") else drawn)[each]), each


def test_what_a_whole_model_does_not_have_is_one_error(published):
    audio = tiny_recipe("llava-audio").system
    config = replace(audio, language_model=load_system(published).system.config.language_model)
    said = r"has no part 'streams\.audio\.projector'; .*it has language_model, streams\.image\.encoder"
    with pytest.raises(CheckpointError, match=said):
        starting_weights([f"streams.audio.projector={published}"])(config.build())
    with pytest.raises(CheckpointError, match=r"holds a MultimodalLM, the stage's system is a DualEncoder; .*part by part"):
        starting_weights([str(published)])(tiny_recipe("clip").system.build())


@pytest.mark.parametrize("start", ["", f"{LANGUAGE_MODEL}="], ids=["whole", "part"])
def test_weights_of_another_arithmetic_are_refused(published, start):
    config = load_system(published).system.config
    faster = replace(config, language_model=replace(config.language_model, rope_theta=5e5))
    with pytest.raises(CheckpointError, match=r"weights for rope_theta=10000\.0 \(here 500000\.0\); change language_model"):
        starting_weights([f"{start}{published}"])(faster.build())


def test_one_whole_model_or_parts(tmp_path):
    (tmp_path / "a=b").mkdir()
    with pytest.raises(ConfigError, match=r"takes one whole model, got .*a=b and owner/name"):
        starting_weights([f"{tmp_path}/a=b", "owner/name"])
    with pytest.raises(ConfigError, match=r"PART=PATH.*or the PATH of a whole model; 'llava' is neither"):
        starting_weights(["llava"])


def test_a_delta_is_no_part(tmp_path):
    (config, *_) = llama.FORMAT.tiny()
    model = config.build()
    torch.nn.init.zeros_(model.final_norm.weight)
    write_weights(tmp_path, llama.LLAMA.from_weft(weights(model)))
    (tmp_path / "config.json").write_text(json.dumps(llama.write_config(config)))
    with pytest.raises(CheckpointError, match=r"given as language_model, holds a delta.*weft convert"):
        starting_weights([f"{LANGUAGE_MODEL}={tmp_path}"])(MultimodalLM.Config(language_model=config).build())
