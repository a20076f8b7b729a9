"""Folders of published language models in layouts of their own, opened whole: config, weights, tokenizer, template."""

import base64
import json
from dataclasses import replace

import pytest
import torch
from tiny_model import scatter, tokenizer

from weft.checkpoints.checkpoint_format import checkpoint_formats
from weft.checkpoints.weight_files import weights, write_weights
from weft.core.conversation import Conversation, user
from weft.inference.model import Model
from weft.inference.sampling import Sampling
from weft.language_models.decoder import Decoder
from weft.recipes.loading import load_system

TINY = replace(Decoder.Config.tiny(), vocabulary=512)
CASES = {
    "qwen": ("qwen", replace(TINY, num_key_value_heads=4, attention_bias=True), "chatml"),
    "internlm2": ("internlm2", TINY, "chatml"),
    "mistral": ("llama", replace(TINY, window=9), "mistral"),
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
    loaded = load_system(tmp_path)
    opened = loaded.system.language_model
    assert opened.config == config and loaded.processor.config.template == template
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in opened.state_dict().items())
    loaded.processor.stop_ids = frozenset()  # nothing may end an answer, so there is one
    (reply,) = Model(loaded.system, loaded.processor).generate(
        [Conversation((user("which colour is it?"),))], Sampling(max_new_tokens=12)
    )
    assert len(reply.token_ids) == 12
