"""OPT against `transformers`, from random weights through the real key map."""

import pytest
import torch
from causal_parity import TOKENS as TOKENS
from causal_parity import assert_same_continuation, assert_same_logits, assert_there_and_back, num_parameters, sequence
from reference_models import randomise, to_weft

from weft.checkpoints.opt import read_config
from weft.core.errors import CheckpointError, ConfigError
from weft.core.sequence import TokenSequence
from weft.language_models.opt import Opt

transformers = pytest.importorskip("transformers")

SIZE = {
    "vocab_size": 97, "hidden_size": 64, "ffn_dim": 112, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 48, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
CASES = {
    "norms before": {},
    "norms behind, as in the 350m": {"do_layer_norm_before": False, "word_embed_proj_dim": 40},
    "norms before, a narrow table": {"word_embed_proj_dim": 80, "activation_function": "gelu"},
}
COUNTS = {
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "opt-30b": 29_974_540_288,
    "opt-66b": 65_719_701_504,
}


def reference(case: str):
    return randomise(transformers.OPTForCausalLM(transformers.OPTConfig(**SIZE, **CASES[case])))


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
def test_published_files_without_the_leading_model_are_read(tmp_path):
    theirs = reference("norms before")
    ours = to_weft(theirs, tmp_path, rename=lambda key: key.removeprefix("model."))
    assert torch.equal(ours.embedding.weight, theirs.get_input_embeddings().weight)


@torch.no_grad()
def test_padding_takes_no_position(tmp_path):
    """Left-padded rows of the reference and our rows without padding: real tokens count from the table's third row."""
    theirs = reference("norms before")
    ours = to_weft(theirs, tmp_path)
    mask = torch.ones_like(TOKENS)
    mask[:, :5] = 0
    expected = theirs(TOKENS, attention_mask=mask).logits[:, 5:]
    hidden, _ = ours(sequence(ours, TOKENS[:, 5:]))
    assert (ours.head(hidden) - expected).abs().max() <= 1e-4 * expected.abs().max()


@torch.no_grad()
def test_positions_are_added_once_where_a_forward_is_cut_in_two():
    torch.manual_seed(0)
    model = Opt.Config.tiny().build().eval()
    tokens = TOKENS.clamp_max(95)
    start = sequence(model, tokens)
    half, memory = model(start, stop=1)
    whole, _ = model(start)
    rest, _ = model(TokenSequence(half, start.positions, start.rule, start.modality, memory), start=1)
    assert torch.equal(rest, whole)


@pytest.mark.parametrize(("size", "count"), COUNTS.items())
def test_published_sizes_have_their_exact_counts(size, count):
    assert num_parameters(Opt.Config.sizes()[size]) == count


def test_every_size_is_counted():
    assert COUNTS.keys() == Opt.Config.sizes().keys()


def test_fields_that_a_config_leaves_out_have_the_reference_defaults():
    assert read_config({"model_type": "opt"}) == read_config(transformers.OPTConfig().to_dict()) == Opt.Config()


def test_what_opt_does_not_have_is_refused_by_name():
    with pytest.raises(CheckpointError, match=r"enable_bias=False, _remove_final_layer_norm=True"):
        read_config({"model_type": "opt", "enable_bias": False, "_remove_final_layer_norm": True})
    with pytest.raises(ConfigError, match="width 64 does not split into 5 heads"):
        Opt.Config(width=64, num_heads=5)
