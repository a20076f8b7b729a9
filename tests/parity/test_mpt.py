"""MPT against `transformers`, from random weights through the real key map, and against its definition written out.

The definition, in another style than Weft's, stands for what `transformers` leaves out: norms of queries and keys, and
slopes of ALiBi other than the usual ones.
"""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from causal_parity import (
    TOKENS,
    assert_same_continuation,
    assert_same_logits,
    assert_there_and_back,
    logits,
    num_parameters,
)
from reference_models import randomise, to_weft

from weft.checkpoints.mpt import FORMAT, MOSAIC_GPT_FORMAT, read_config, read_mosaic_config, write_config
from weft.checkpoints.weight_files import weights
from weft.core.errors import CheckpointError
from weft.language_models.mpt import Mpt

transformers = pytest.importorskip("transformers")

SIZE = {"vocab_size": 97, "d_model": 48, "n_layers": 3, "n_heads": 4, "max_seq_len": 64}
CASES = {
    "four heads": ({}, {}),
    "six heads, whose slopes interleave": ({"n_heads": 6}, {}),
    "clipped": ({"layer_norm_epsilon": 1e-4}, {"clip_qkv": 0.8}),
}
COUNTS = {
    "mpt-1b-redpajama-200b": 1_311_311_872,
    "mpt-7b": 6_649_286_656,
    "mpt-7b-storywriter": 6_649_286_656,
    "mpt-30b": 29_957_200_896,
}


def reference(case: str):
    sizes, attention = CASES[case]
    config = transformers.MptConfig(**(SIZE | sizes), attn_config=attention)
    return randomise(transformers.MptForCausalLM(config))


def written_out(config: Mpt.Config, state: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """The model of a MosaicGPT file: logits [B, T, V], one head and one query at a time."""
    slopes = [2 ** (-config.bias_exponent * (i + 1) / 2 ** math.ceil(math.log2(config.num_heads))) for i in range(32)]
    if math.log2(config.num_heads) % 1:
        within = slopes[: 2 ** math.ceil(math.log2(config.num_heads))]
        slopes = within[1::2] + within[0::2]

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], None, 1e-5)

    def attend(x, prefix):
        joint = x @ state[f"{prefix}.Wqkv.weight"].T
        if config.clip is not None:
            joint = joint.clip(-config.clip, config.clip)
        query, key, value = joint.chunk(3, -1)
        if config.query_key_norm:
            query, key = norm(query, f"{prefix}.q_ln"), norm(key, f"{prefix}.k_ln")
        mixed = torch.zeros_like(query)
        d = config.width // config.num_heads
        for head in range(config.num_heads):
            part = slice(head * d, (head + 1) * d)
            for t in range(x.shape[1]):
                far = torch.arange(t, -1, -1)
                scores = key[:, : t + 1, part] @ query[:, t, part, None] / math.sqrt(d) - (slopes[head] * far)[:, None]
                mixed[:, t, part] = (scores.softmax(1) * value[:, : t + 1, part]).sum(1)
        return mixed @ state[f"{prefix}.out_proj.weight"].T

    x = state["transformer.wte.weight"][tokens]
    for layer in range(config.num_layers):
        at = f"transformer.blocks.{layer}"
        x = x + attend(norm(x, f"{at}.ln_1"), f"{at}.attn")
        up = F.gelu(norm(x, f"{at}.ln_2") @ state[f"{at}.mlp.mlp_up.weight"].T)
        x = x + up @ state[f"{at}.mlp.mlp_down.weight"].T
    return norm(x, "transformer.ln_f") @ state["transformer.wte.weight"].T


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_reference_with_and_without_a_cache(case, tmp_path):
    theirs = reference(case)
    assert_same_logits(to_weft(theirs, tmp_path), theirs(TOKENS).logits)


@pytest.mark.parametrize("case", CASES)
def test_greedy_continuations_are_those_of_the_reference(case, tmp_path):
    theirs = reference(case)
    assert_same_continuation(to_weft(theirs, tmp_path), theirs)


@pytest.mark.parametrize("case", CASES)
def test_the_way_to_transformers_and_back_changes_no_bit(case, tmp_path):
    assert_there_and_back(reference(case), tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("heads", [4, 6, 12])
@pytest.mark.parametrize("changes", [{}, {"clip": 0.8}, {"bias_exponent": 16, "query_key_norm": False}], ids=str)
def test_the_layout_of_mpt_1b_is_the_model_written_out(heads, changes):
    """Norms of queries and keys over all heads at once, behind the clipping; through a file of that layout."""
    plain: dict = {"vocabulary": 97, "width": 48, "num_heads": heads, "clip": None}
    config = replace(Mpt.Config.tiny(), **(plain | changes))
    model = randomise(config.build(), seed=3)
    state = MOSAIC_GPT_FORMAT.key_map(config).from_weft(weights(model))
    expected = written_out(config, state, TOKENS[:, :20])
    difference = (logits(model, TOKENS[:, :20]) - expected).abs().max()
    assert difference <= 1e-4 * max(1.0, expected.abs().max().item())  # float32 rounding over two layers
    assert expected.std() > 0.3


@torch.no_grad()
def test_the_reference_library_leaves_the_slopes_of_the_storywriter_out(tmp_path):
    """What it covers is known here: a library that follows `alibi_bias_max` may stand in for the definition above."""
    config = transformers.MptConfig(**SIZE, attn_config={"alibi_bias_max": 16})
    theirs = randomise(transformers.MptForCausalLM(config))
    ours = to_weft(theirs, tmp_path)
    assert ours.config.bias_exponent == 16
    usual = replace(ours.config, bias_exponent=8).build().eval()
    FORMAT.key_map(usual.config).load(usual, FORMAT.key_map(ours.config).from_weft(weights(ours)), "state")
    expected = theirs(TOKENS).logits
    assert (logits(usual) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (logits(ours) - expected).abs().max() > 0.01 * expected.abs().max()


@pytest.mark.parametrize(("size", "count"), COUNTS.items())
def test_published_sizes_have_their_exact_counts(size, count):
    assert num_parameters(Mpt.Config.sizes()[size]) == count


def test_every_size_is_counted():
    assert COUNTS.keys() == Mpt.Config.sizes().keys()


def test_the_published_config_of_mpt_1b_is_read():
    published = {
        "model_type": "mosaic_gpt", "d_model": 2048, "n_heads": 16, "n_layers": 24, "mlp_ratio": 4, "max_seq_len": 2048,
        "vocab_size": 50368, "attn_qk_ln": True, "attn_clip_qkv": None, "alibi": True, "alibi_bias_max": 8, "no_bias": True,
        "softmax_scale": None, "prefix_lm": False, "logit_scale": None, "low_precision_layernorm": True,
    }  # fmt: skip
    assert read_mosaic_config(published) == Mpt.Config.sizes()["mpt-1b-redpajama-200b"]


def test_fields_that_a_config_leaves_out_have_the_reference_defaults():
    assert read_config({"model_type": "mpt"}) == read_config(transformers.MptConfig().to_dict())


def test_what_mpt_does_not_have_is_refused_by_name():
    with pytest.raises(CheckpointError, match=r"attn_config, asks for qk_ln=True, alibi=False"):
        read_config({"attn_config": {"alibi": False, "qk_ln": True}})
    with pytest.raises(CheckpointError, match=r"no_bias=False"):
        read_config({"no_bias": False})
    with pytest.raises(CheckpointError, match=r"alibi=False, no_bias=False"):
        read_mosaic_config({"model_type": "mosaic_gpt"})
    with pytest.raises(CheckpointError, match="write mosaic_gpt instead"):
        write_config(Mpt.Config.tiny())
