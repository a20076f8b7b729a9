"""The decoder against `transformers`' Llama, Qwen2 and Qwen3, from random weights through the real key map."""

import pytest
import torch
from reference_models import randomise, to_transformers, to_weft

from weft.core.attention_rule import AttentionRule
from weft.core.sequence import TokenSequence
from weft.inference.cache import KeyValueCache
from weft.language_models.decoder import Decoder

transformers = pytest.importorskip("transformers")

SIZE = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
CASES = {
    "llama": ("Llama", {}),
    "llama, grouped heads": ("Llama", {"num_key_value_heads": 2, "rms_norm_eps": 1e-5}),
    "llama 3 rope, tied head": ("Llama", {"num_key_value_heads": 1, "rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama, wide heads": ("Llama", {"head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
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
    cache, logits = KeyValueCache(len(model.blocks)), []
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
    cache = KeyValueCache(len(ours.blocks))
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
    again = to_transformers(ours, type(theirs), tmp_path / "ours")
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in again.state_dict().items())
    back = to_weft(again, tmp_path / "back")
    assert back.config == ours.config
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in back.state_dict().items())


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
def test_fields_that_a_config_leaves_out_have_the_reference_defaults(family):
    from weft.checkpoints.llama import read_config

    whole = getattr(transformers, f"{family}Config")().to_dict()
    assert read_config({"model_type": whole["model_type"]}) == read_config(whole)
