"""Folders of published language models in layouts of their own, opened whole: config, weights, tokenizer, template."""

import base64
import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from tiny_model import scatter, tokenizer
from typer.testing import CliRunner

from weft.checkpoints.checkpoint_format import checkpoint_formats
from weft.checkpoints.weight_files import weights, write_weights
from weft.core.conversation import Conversation, user
from weft.core.errors import CheckpointError
from weft.inference.model import Model
from weft.inference.sampling import Sampling
from weft.language_models.bert import Bert
from weft.language_models.decoder import Decoder
from weft.language_models.gpt_neox import GptNeox
from weft.language_models.mpt import Mpt
from weft.language_models.opt import Opt
from weft.recipes.loading import load_system
from weft.serving.cli import app

TINY = replace(Decoder.Config.tiny(), vocabulary=512)
WITHOUT_TEMPLATE = {"opt": Opt, "mpt": Mpt, "mosaic_gpt": Mpt, "gpt_neox": GptNeox}
CASES = {
    "qwen": ("qwen", replace(TINY, num_key_value_heads=4, attention_bias=True), "chatml"),
    "internlm2": ("internlm2", TINY, "chatml"),
    "mistral": ("llama", replace(TINY, window=9), "mistral"),
    **{kind: (kind, replace(model.Config.tiny(), vocabulary=512), "continued") for kind, model in WITHOUT_TEMPLATE.items()},
    "mpt": ("mpt", replace(Mpt.Config.tiny(), vocabulary=512, query_key_norm=False), "continued"),
}


def write_tokenizer(folder, kind):
    if kind == "qwen":  # the 256 bytes and nothing else
        lines = [f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256)]
        (folder / "qwen.tiktoken").write_text("".join(lines))
    else:
        tokenizer().with_special(["<|im_start|>", "<|im_end|>"]).save(folder)


@pytest.mark.parametrize("kind", CASES)
def test_a_folder_opens_and_answers(kind, tmp_path):
    layout, config, template = CASES[kind]
    layout = checkpoint_formats()[layout]
    model = config.build().eval()
    scatter(model)
    write_weights(tmp_path, layout.key_map(config).from_weft(weights(model)))
    saved = layout.write_config(config)
    (tmp_path / "config.json").write_text(json.dumps(saved))
    write_tokenizer(tmp_path, kind)
    assert saved["model_type"] == kind
    with pytest.warns(UserWarning, match="without a chat template") if kind in WITHOUT_TEMPLATE else nullcontext():
        loaded = load_system(tmp_path)
    opened = loaded.system.language_model
    assert opened.config == config and loaded.processor.config.template == template
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in opened.state_dict().items())
    loaded.processor.stop_ids = frozenset()  # nothing may end an answer, so there is one
    (reply,) = Model(loaded.system, loaded.processor).generate(
        [Conversation((user("which colour is it?"),))], Sampling(max_new_tokens=12)
    )
    assert len(reply.token_ids) == 12
    if kind in WITHOUT_TEMPLATE:
        asked = loaded.processor.encode(Conversation((user("which colour is it?"),)), reply=True)
        assert asked.text == "which colour is it?"


def test_weft_chat_and_convert_take_a_language_model_without_a_template(tmp_path):
    config = CASES["gpt_neox"][1]
    layout = checkpoint_formats()["gpt_neox"]
    model = config.build().eval()
    scatter(model)
    folder = tmp_path / "pythia"
    folder.mkdir()
    write_weights(folder, layout.key_map(config).from_weft(weights(model)))
    (folder / "config.json").write_text(json.dumps(layout.write_config(config)))
    tokenizer().save(folder)
    arguments = ["--prompt", "which colour", "--max-new-tokens", "5", "--device", "cpu"]
    with pytest.warns(UserWarning, match="its texts are written as they are"):
        said = CliRunner().invoke(app, ["chat", str(folder), *arguments])
        done = CliRunner().invoke(app, ["convert", str(folder), str(tmp_path / "weft"), "--to", "weft"])
    assert said.exit_code == done.exit_code == 0, said.output + done.output
    again = CliRunner().invoke(app, ["chat", str(tmp_path / "weft"), *arguments])
    assert again.exit_code == 0 and again.output == said.output and said.output.strip()


def test_a_bert_is_a_part_that_writes_no_text(tmp_path):
    config, layout = Bert.Config.tiny(), checkpoint_formats()["bert"]
    write_weights(tmp_path, layout.key_map(config).from_weft(weights(config.build())))
    (tmp_path / "config.json").write_text(json.dumps(layout.write_config(config)))
    tokenizer().save(tmp_path)
    with pytest.raises(CheckpointError, match="holds a bert alone, a part of a system"):
        load_system(tmp_path)
