"""InternLM2, which `transformers` 5 lacks: its fused matrix written by hand from a Llama, whose class is the reference."""

import pytest
import torch
from reference_models import randomise

from weft.checkpoints.internlm2 import FORMAT, read_config, write_config
from weft.core.attention_rule import AttentionRule
from weft.core.errors import CheckpointError
from weft.core.sequence import TokenSequence
from weft.inference.cache import KeyValueCache
from weft.language_models.decoder import Decoder

transformers = pytest.importorskip("transformers")

HEADS, GROUPS, SIZE = 6, 2, 8
SAVED = {
    "model_type": "internlm2", "vocab_size": 97, "hidden_size": HEADS * SIZE, "intermediate_size": 112,
    "num_hidden_layers": 3, "num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5, "rope_theta": 1_000_000, "rope_scaling": {"factor": 2.0, "type": "dynamic"}, "bias": False,
    "tie_word_embeddings": False,
}  # fmt: skip
TOKENS = torch.randint(3, 97, (2, 40), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def llama():
    inherited = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads", "max_position_embeddings", "rms_norm_eps")  # fmt: skip
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}
    config = transformers.LlamaConfig(**{name: SAVED[name] for name in inherited}, rope_parameters=rope)
    return randomise(transformers.LlamaForCausalLM(config))


def file_of(llama) -> dict[str, torch.Tensor]:
    """The tensors in InternLM2's names; a head's rows go one by one to where the published code reads them."""
    own = llama.state_dict()
    made = {
        "model.tok_embeddings.weight": own["model.embed_tokens.weight"],
        "model.norm.weight": own["model.norm.weight"],
        "output.weight": own["lm_head.weight"],
    }
    for layer in range(SAVED["num_hidden_layers"]):
        old, new = f"model.layers.{layer}.", f"model.layers.{layer}."
        rows = []
        for group in range(GROUPS):
            for head in range(group * HEADS // GROUPS, (group + 1) * HEADS // GROUPS):
                rows += list(own[f"{old}self_attn.q_proj.weight"][head * SIZE : (head + 1) * SIZE])
            for name in "kv":
                rows += list(own[f"{old}self_attn.{name}_proj.weight"][group * SIZE : (group + 1) * SIZE])
        made[f"{new}attention.wqkv.weight"] = torch.stack(rows)
        for theirs, ours in {
            "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
            "mlp.down_proj": "feed_forward.w2", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
        }.items():  # fmt: skip
            made[f"{new}{ours}.weight"] = own[f"{old}{theirs}.weight"]
    return made


@pytest.fixture(scope="module")
def ours(llama) -> Decoder:
    config = read_config(SAVED)
    model = config.build().eval()
    assert FORMAT.key_map(config).load(model, file_of(llama), "internlm2") == {}
    return model


def read(model: Decoder, tokens: torch.Tensor, cache: KeyValueCache | None = None) -> torch.Tensor:
    start = 0 if cache is None else cache.length
    positions = torch.arange(start, start + tokens.shape[1]).expand_as(tokens)
    rule = AttentionRule(positions, torch.ones_like(positions))
    rule = rule if cache is None else cache.extend(rule.queries)
    return model.head(model(TokenSequence(model.embed(tokens), positions, rule, torch.zeros_like(tokens)), cache)[0])


@torch.no_grad()
def test_logits_equal_the_reference_with_and_without_a_cache(llama, ours):
    expected = llama(TOKENS).logits
    bound = 1e-4 * max(1.0, expected.abs().max().item())  # float32 rounding over three layers
    cache = KeyValueCache.of(ours)
    pieces = [read(ours, piece, cache) for piece in TOKENS.split([7, 1, 1, 21, 10], 1)]
    assert (read(ours, TOKENS) - expected).abs().max() <= bound
    assert (torch.cat(pieces, 1) - expected).abs().max() <= bound
    assert expected.std() > 0.3  # weights under which every layer matters


@torch.no_grad()
def test_greedy_continuations_are_those_of_the_reference(llama, ours):
    prompt, steps = TOKENS[:, :9], 24
    expected = llama.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=steps, min_new_tokens=steps, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    cache, tokens, piece = KeyValueCache.of(ours), prompt, prompt
    for _ in range(steps):
        piece = read(ours, piece, cache)[:, -1].argmax(-1, keepdim=True)
        tokens = torch.cat((tokens, piece), 1)
    assert torch.equal(tokens, expected)


def test_the_way_back_gives_the_file_and_its_config(llama, ours):
    written = FORMAT.key_map(ours.config).from_weft(ours.state_dict())
    assert written.keys() == file_of(llama).keys()
    assert all(torch.equal(tensor, written[name]) for name, tensor in file_of(llama).items())
    saved = write_config(ours.config)
    assert {name: saved[name] for name in SAVED} == SAVED


def test_the_published_config_is_the_named_size():
    published = {
        "model_type": "internlm2", "bias": False, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14_336,
        "max_position_embeddings": 32_768, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 2.0, "type": "dynamic"}, "rope_theta": 1_000_000,
        "tie_word_embeddings": False, "vocab_size": 92_544,
    }  # fmt: skip
    assert read_config(published) == Decoder.Config.sizes()["internlm2-7b"]


def test_what_the_decoder_cannot_follow_is_named():
    with pytest.raises(CheckpointError, match="bias=True"):
        read_config(SAVED | {"bias": True})
    with pytest.raises(CheckpointError, match="'yarn'"):
        read_config(SAVED | {"rope_scaling": {"type": "yarn", "factor": 2.0}})
