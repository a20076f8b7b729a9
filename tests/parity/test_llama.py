"""The decoder against `transformers`' Llama, Mistral, Qwen2 and Qwen3, from random weights through the real key map."""

from dataclasses import replace

import pytest
import torch
from reference_models import randomise, to_transformers, to_weft

from weft.checkpoints.llama import read_config, write_config
from weft.checkpoints.weight_files import weights
from weft.core.attention_rule import AttentionRule
from weft.core.errors import CheckpointError
from weft.core.sequence import TokenSequence
from weft.inference.cache import KeyValueCache
from weft.language_models.decoder import Decoder
from weft.systems.accounting import num_parameters, without_values

transformers = pytest.importorskip("transformers")

SIZE = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
CASES = {
    "llama": ("Llama", {}),
    "llama, grouped heads": ("Llama", {"num_key_value_heads": 2, "rms_norm_eps": 1e-5}),
    "llama 3 rope, tied head": ("Llama", {"num_key_value_heads": 1, "rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama, wide heads": ("Llama", {"head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "llama, positions divided": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "llama, dynamic base": ("Llama", {"rope_parameters": DYNAMIC}),
    "mistral": ("Mistral", {"num_key_value_heads": 2, "sliding_window": 6}),
    "mistral without a window": ("Mistral", {"num_key_value_heads": 2, "sliding_window": None, "head_dim": 32}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 24}),
}
TOKENS = torch.randint(3, 97, (2, 40), generator=torch.Generator().manual_seed(1))


def reference(case: str):
    family, changes = CASES[case]
    config = getattr(transformers, f"{family}Config")(**SIZE, **changes)
    return randomise(getattr(transformers, f"{family}ForCausalLM")(config))


def sequence(model: Decoder, tokens: torch.Tensor, start: int = 0) -> TokenSequence:
    positions = torch.arange(start, start + tokens.shape[1]).expand_as(tokens)
    rule = AttentionRule(positions, torch.ones_like(positions))
    return TokenSequence(model.embed(tokens), positions, rule, torch.zeros_like(tokens))


def with_cache(model: Decoder, cuts: list[int]) -> torch.Tensor:
    """Logits of TOKENS read piece by piece."""
    cache, logits = KeyValueCache.of(model), []
    for start, stop in zip([0, *cuts], [*cuts, TOKENS.shape[1]], strict=True):
        piece = sequence(model, TOKENS[:, start:stop], start)
        rule = cache.extend(piece.rule.queries)
        hidden, _ = model(TokenSequence(piece.embeddings, piece.positions, rule, piece.modality), cache)
        logits.append(model.head(hidden))
    return torch.cat(logits, 1)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_reference_with_and_without_a_cache(case, tmp_path):
    theirs = reference(case)
    ours = to_weft(theirs, tmp_path)
    expected = theirs(TOKENS).logits
    bound = 1e-4 * max(1.0, expected.abs().max().item())  # float32 rounding over three layers
    hidden, _ = ours(sequence(ours, TOKENS))
    assert (ours.head(hidden) - expected).abs().max() <= bound
    assert (with_cache(ours, [7, 8, 9, 30]) - expected).abs().max() <= bound
    assert expected.std() > 0.3  # weights under which every layer matters


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_greedy_continuations_are_those_of_the_reference(case, tmp_path):
    theirs = reference(case)
    ours = to_weft(theirs, tmp_path)
    steps = 24
    prompt = TOKENS[:, :9]
    expected = theirs.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=steps,
        min_new_tokens=steps,
        do_sample=False,
        eos_token_id=None,
    )
    cache = KeyValueCache.of(ours)
    tokens, piece = prompt, prompt
    for _ in range(steps):
        made = sequence(ours, piece, tokens.shape[1] - piece.shape[1])
        rule = cache.extend(made.rule.queries)
        hidden, _ = ours(TokenSequence(made.embeddings, made.positions, rule, made.modality), cache)
        piece = ours.head(hidden[:, -1]).argmax(-1, keepdim=True)
        tokens = torch.cat((tokens, piece), 1)
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize("case", CASES)
def test_the_way_to_transformers_and_back_changes_no_bit(case, tmp_path):
    theirs = reference(case)
    ours = to_weft(theirs, tmp_path / "theirs")
    cls = type(theirs) if write_config(ours.config)["model_type"] == theirs.config.model_type else transformers.LlamaForCausalLM
    again = to_transformers(ours, cls, tmp_path / "ours")
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in again.state_dict().items())
    back = to_weft(again, tmp_path / "back")
    assert back.config == ours.config
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in back.state_dict().items())


@torch.no_grad()
def test_a_dynamic_base_is_the_published_one_of_a_text_as_long_as_the_context(tmp_path):
    """Two thirds of the text lie beyond the original context, which only a decoder with a longer one reads."""
    length = TOKENS.shape[1]
    config = transformers.LlamaConfig(**(SIZE | {"max_position_embeddings": 14}), rope_parameters=DYNAMIC)
    theirs = randomise(transformers.LlamaForCausalLM(config))
    short = to_weft(theirs, tmp_path)
    longer = replace(short.config, context=length).build().eval()
    longer.load_state_dict(weights(short))
    expected = theirs(TOKENS).logits
    bound = 1e-4 * max(1.0, expected.abs().max().item())  # float32 rounding over three layers
    assert (longer.head(longer(sequence(longer, TOKENS))[0]) - expected).abs().max() <= bound
    assert (with_cache(longer, [7, 30]) - expected).abs().max() <= bound, "what is cached keeps its base"
    assert (short.head(short(sequence(short, TOKENS))[0]) - expected).abs().max() > 100 * bound
    with pytest.raises(CheckpointError, match="context 40 is not the 14 from which its scaling starts"):
        write_config(longer.config)


@torch.no_grad()
def test_a_window_holds_for_a_cache_that_was_made_without_it(tmp_path):
    theirs = reference("mistral")
    ours = to_weft(theirs, tmp_path)
    cache = KeyValueCache(len(ours.blocks))
    for part in (slice(0, 30), slice(30, 40)):
        piece = sequence(ours, TOKENS[:, part], part.start)
        rule = cache.extend(piece.rule.queries)
        hidden, _ = ours(TokenSequence(piece.embeddings, piece.positions, rule, piece.modality), cache)
    expected = theirs(TOKENS).logits[:, 30:]
    assert (ours.head(hidden) - expected).abs().max() <= 1e-4 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize(
    "traits",
    [{"window": 8, "attention_bias": True}, {"attention_bias": True, "head_norm": True}, {"log_scaling_context": 64}],
    ids=str,
)
def test_a_decoder_that_no_published_layout_holds_is_not_written(traits):
    with pytest.raises(CheckpointError, match=r"cannot be written|Qwen 1 layout"):
        write_config(replace(Decoder.Config.tiny(), **traits))


def test_a_long_vicuna_states_its_length_beside_the_original_one():
    long = {"model_type": "llama", "max_position_embeddings": 4096, "max_sequence_length": 16_384, "rms_norm_eps": 1e-5}
    long["rope_scaling"] = {"type": "linear", "factor": 4.0}
    assert read_config(long) == Decoder.Config.sizes()["vicuna-7b-v1.5-16k"]


PUBLISHED = {
    "vicuna-7b-v1.5": 6_738_415_616,
    "mistral-7b-v0.1": 7_241_732_096,
    "deepseek-llm-7b": 6_910_365_696,
    "internlm2-1.8b": 1_889_110_016,
    "internlm2-7b": 7_737_708_544,
    "internlm2-20b": 19_861_149_696,
    "qwen-7b": 7_721_324_544,
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_sizes_have_the_published_number_of_parameters(size):
    with torch.device("meta"), without_values():
        model = Decoder.Config.sizes()[size].build()
    assert num_parameters(model) == PUBLISHED[size]


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_fields_that_a_config_leaves_out_have_the_reference_defaults(family):
    whole = getattr(transformers, f"{family}Config")().to_dict()
    assert read_config({"model_type": whole["model_type"]}) == read_config(whole)
