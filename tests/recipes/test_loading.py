"""A model opens from a Weft folder, a run folder, a folder in transformers layout or the hub's cache, and is the same model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from weft.checkpoints.weight_files import WEIGHTS, weights, write_weights
from weft.core.conversation import Conversation, Media, user
from weft.core.errors import CheckpointError, ConfigError
from weft.data.images import ImageTransform
from weft.data.processor import Processor
from weft.data.tokenizers import Tokenizer
from weft.encoders.clip import ClipText, ClipVision
from weft.fusion.token_concatenation import TokenConcatenation
from weft.inference.model import Model
from weft.inference.sampling import Sampling
from weft.language_models.decoder import Decoder
from weft.projectors.mlp import MLP
from weft.recipes.loading import load_model, load_system, save_model
from weft.systems.dual_encoder import DualEncoder
from weft.systems.multimodal_lm import MultimodalLM, Stream
from weft.training.model_folder import write_model_folder

SPECIAL = ("<s>", "</s>", "<pad>")


def tiny_model(special: tuple[str, ...] = SPECIAL, **changes) -> Model:
    """A seeing model with random weights large enough to matter."""
    tokenizer = Tokenizer.train(["the cat sat on the mat, USER: what is this? ASSISTANT: a cat"] * 3, 300, special)
    system = MultimodalLM.Config(
        language_model=replace(Decoder.Config.tiny(), vocabulary=tokenizer.vocabulary, **changes),
        streams={"image": Stream.Config(encoder=ClipVision.Config.tiny(), projector=MLP.Config(depth=2))},
        fusions=(TokenConcatenation.Config(),),
    )
    torch.manual_seed(0)
    built = system.build().eval()
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
    processor = Processor.Config(template="vicuna_v1", transforms={"image": ImageTransform(size=32, pad_to_square=True)})
    return Model(built, processor.build(tokenizer, system))


PICTURE = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
QUESTION = Conversation((user(Media(PICTURE), "what is this?"),))
SHORT = Sampling(max_new_tokens=12)


def assert_same_model(first: Model, second: Model) -> None:
    assert second.system.config == first.system.config
    assert second.processor.config == first.processor.config
    assert all(torch.equal(value, first.system.state_dict()[name]) for name, value in second.system.state_dict().items())
    assert second.generate([QUESTION], SHORT)[0].token_ids == first.generate([QUESTION], SHORT)[0].token_ids


@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_model_is_the_same_after_loading(tmp_path, tied):
    model = tiny_model(tied_head=tied)
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert_same_model(model, again)
    assert not any(parameter.is_meta for parameter in again.system.parameters())
    assert (again.system.language_model.output.weight is again.system.language_model.embedding.weight) == tied
    assert not again.system.training


def test_a_run_folder_opens_its_last_model(tmp_path):
    model = tiny_model()
    save_model(model, tmp_path / "run" / "model")
    (tmp_path / "run" / "recipe.json").write_text("{}")
    assert_same_model(model, load_model(tmp_path / "run"))


def test_a_run_that_has_not_finished_says_which_stages_have(tmp_path):
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no stage has finished"):
        load_model(tmp_path)
    (tmp_path / "stages" / "align").mkdir(parents=True)
    (tmp_path / "stages" / "align" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="finished stages: stages/align"):
        load_model(tmp_path)


def test_precision_can_be_chosen_and_positions_stay_exact(tmp_path):
    save_model(tiny_model(), tmp_path / "model")
    system = load_model(tmp_path / "model", dtype=torch.bfloat16).system
    assert {parameter.dtype for parameter in system.parameters()} == {torch.bfloat16}
    assert system.language_model.rotary.inverse_frequency.dtype == torch.float32


def test_saving_replaces_a_model_and_nothing_else(tmp_path):
    model = tiny_model()
    save_model(model, tmp_path / "model")
    save_model(model, tmp_path / "model")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    for target in (tmp_path / "notes", tmp_path / "notes" / "diary.txt"):
        with pytest.raises(CheckpointError, match="is no Weft model folder"):
            save_model(model, target)
    assert (tmp_path / "notes" / "diary.txt").read_text() == "mine"


def broken(folder: Path, how: str) -> None:
    if how == "truncated":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-10])
    elif how == "no weights":
        (folder / WEIGHTS).unlink()
    elif how == "no processor":
        (folder / "processor.json").unlink()
    elif how == "config is no JSON":
        (folder / "config.json").write_text("{")
    elif how == "another model type":
        (folder / "config.json").write_text('{"model_type": "gpt_oss"}')
    elif how == "another size":
        saved = json.loads((folder / "config.json").read_text())
        saved["language_model"]["num_layers"] = 3
        (folder / "config.json").write_text(json.dumps(saved))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("truncated", r"model\.safetensors is cut short"),
        ("no weights", "holds no weights"),
        ("no processor", r"processor\.json does not exist"),
        ("config is no JSON", r"config\.json cannot be read"),
        ("another model type", "'gpt_oss'; Weft reads"),
        ("another size", r"language_model\.blocks\.2\.attention\.query\.weight"),
    ],
)
def test_a_broken_folder_is_one_line_that_names_the_file(tmp_path, how, said):
    save_model(tiny_model(), tmp_path / "model")
    broken(tmp_path / "model", how)
    with pytest.raises((CheckpointError, ConfigError), match=said) as caught:
        load_model(tmp_path / "model")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_model_is_said_to_be_none(tmp_path):
    with pytest.raises(CheckpointError, match="holds no model"):
        load_model(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist; a model is"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "file.bin").write_text("x")
    with pytest.raises(CheckpointError, match="is a file; a model is"):
        load_model(tmp_path / "file.bin")


def test_a_dual_encoder_opens_as_a_system_and_does_not_answer(tmp_path):
    tokenizer = Tokenizer.train(["a cat"], 300, SPECIAL)
    text = replace(ClipText.Config.tiny(), vocabulary=tokenizer.vocabulary)
    config = DualEncoder.Config(media=ClipVision.Config.tiny(), text=text, embedding_width=16)
    processor = Processor.Config(template="clip_text", transforms={"image": ImageTransform(size=32)}).build(tokenizer, config)
    system = config.build()
    write_model_folder(tmp_path / "tower", system, processor)
    loaded = load_system(tmp_path / "tower")
    assert all(torch.equal(value, system.state_dict()[name]) for name, value in loaded.system.state_dict().items())
    with pytest.raises(CheckpointError, match="DualEncoder, which does not answer"):
        load_model(tmp_path / "tower")


def test_weights_may_be_sharded(tmp_path):
    model = tiny_model()
    save_model(model, tmp_path / "model")
    (tmp_path / "model" / WEIGHTS).unlink()
    write_weights(tmp_path / "model", weights(model.system), shard_bytes=50_000)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 3
    assert_same_model(model, load_model(tmp_path / "model"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A local hub cache that holds one commit of weft/tiny, and no connection."""
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--weft--tiny"
    save_model(tiny_model(), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return commit


def test_a_hub_name_opens_from_the_cache_at_a_pinned_revision(hub):
    for name, revision in (("weft/tiny", None), ("weft/tiny", hub), (f"weft/tiny@{hub}", None)):
        assert_same_model(tiny_model(), load_model(name, revision=revision))


def test_a_hub_name_that_is_not_in_the_cache_is_one_clear_error(hub):
    for name, revision in (("weft/other", None), ("weft/tiny", "f" * 40)):
        with pytest.raises(CheckpointError, match="nor in the local hub cache"):
            load_model(name, revision=revision)
    with pytest.raises(CheckpointError, match="give one"):
        load_model(f"weft/tiny@{hub}", revision="main")
