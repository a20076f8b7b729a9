"""GPT-NeoX against `transformers`, from random weights through the real key map."""

import pytest
import torch
from causal_parity import TOKENS, assert_same_continuation, assert_same_logits, assert_there_and_back, num_parameters
from reference_models import randomise, to_weft

from weft.checkpoints.gpt_neox import channel_order, key_map, read_config
from weft.core.errors import CheckpointError, ConfigError
from weft.language_models.gpt_neox import GptNeox

transformers = pytest.importorskip("transformers")

SIZE = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
CASES = {
    "a quarter turns, in parallel": {},
    "all turns, one after the other": {"rotary_pct": 1.0, "use_parallel_residual": False, "rotary_emb_base": 5e4},
    "three quarters turn, tied head": {"rotary_pct": 0.75, "tie_word_embeddings": True, "hidden_act": "gelu_fast"},
}
COUNTS = {
    "pythia-14m": 14_067_712,
    "pythia-31m": 30_494_720,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "redpajama-incite-3b": 2_775_864_320,
    "redpajama-incite-7b": 6_857_302_016,
    "gpt-neox-20b": 20_554_567_680,
}


def reference(case: str):
    return randomise(transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SIZE, **CASES[case])))


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
def test_a_running_models_name_of_the_head_is_read_too(tmp_path):
    theirs = reference("a quarter turns, in parallel")
    ours = to_weft(theirs, tmp_path, rename=lambda key: key.replace("embed_out", "lm_head"))
    assert torch.equal(ours.output.weight, theirs.get_output_embeddings().weight)


def test_buffers_of_older_files_are_dropped_with_a_reason():
    attention = "gpt_neox.layers.11.attention."
    buffers = [f"{attention}{name}" for name in ("bias", "masked_bias", "rotary_emb.inv_freq")]
    plan = key_map(GptNeox.Config.tiny()).plan([*buffers, f"{attention}dense.bias"])
    assert set(plan.dropped) == set(buffers) and not plan.problems.unknown


def test_turned_channels_stand_at_the_start_of_each_half():
    assert channel_order(12, 4).tolist() == [0, 1, 4, 5, 6, 7, 2, 3, 8, 9, 10, 11]
    assert channel_order(6, 6).tolist() == list(range(6))


@pytest.mark.parametrize(("size", "count"), COUNTS.items())
def test_published_sizes_have_their_exact_counts(size, count):
    assert num_parameters(GptNeox.Config.sizes()[size]) == count


def test_every_size_is_counted():
    assert COUNTS.keys() == GptNeox.Config.sizes().keys()


def test_fields_that_a_config_leaves_out_have_the_reference_defaults():
    assert read_config({"model_type": "gpt_neox"}) == read_config(transformers.GPTNeoXConfig().to_dict())


def test_what_gpt_neox_does_not_have_is_refused_by_name():
    with pytest.raises(CheckpointError, match=r"attention_bias=False, rope_type='linear'"):
        read_config({"attention_bias": False, "rope_scaling": {"type": "linear", "factor": 2.0}})
    with pytest.raises(ConfigError, match="heads of 16 channels of which 3 turn"):
        GptNeox.Config(width=64, num_heads=4, rotated_fraction=0.2)
