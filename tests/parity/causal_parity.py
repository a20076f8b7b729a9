"""What is asked of every causal language model against a reference with the same weights."""

import torch
from reference_models import to_transformers, to_weft

from weft.core.attention_rule import AttentionRule
from weft.core.interfaces import LanguageModel
from weft.core.sequence import TokenSequence
from weft.inference.cache import KeyValueCache
from weft.systems.accounting import without_values

TOKENS = torch.randint(3, 97, (2, 40), generator=torch.Generator().manual_seed(1))


def sequence(model: LanguageModel, tokens: torch.Tensor, start: int = 0) -> TokenSequence:
    positions = torch.arange(start, start + tokens.shape[1]).expand_as(tokens)
    rule = AttentionRule(positions, torch.ones_like(positions))
    return TokenSequence(model.embed(tokens), positions, rule, torch.zeros_like(tokens))


def logits(model: LanguageModel, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    hidden, _ = model(sequence(model, tokens))
    return model.head(hidden)


def cached_logits(model: LanguageModel, cuts: list[int], tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    """Logits of tokens read piece by piece."""
    cache, found = KeyValueCache(len(model.blocks)), []
    for start, stop in zip([0, *cuts], [*cuts, tokens.shape[1]], strict=True):
        piece = sequence(model, tokens[:, start:stop], start)
        rule = cache.extend(piece.rule.queries)
        hidden, _ = model(TokenSequence(piece.embeddings, piece.positions, rule, piece.modality), cache)
        found.append(model.head(hidden))
    return torch.cat(found, 1)


@torch.no_grad()
def assert_same_logits(ours: LanguageModel, expected: torch.Tensor) -> None:
    """With and without a cache, within 1e-4 of the largest: float32 rounding over a few layers."""
    bound = 1e-4 * max(1.0, expected.abs().max().item())
    assert (logits(ours) - expected).abs().max() <= bound
    assert (cached_logits(ours, [7, 8, 9, 30]) - expected).abs().max() <= bound
    assert expected.std() > 0.3  # weights under which every layer matters


@torch.no_grad()
def assert_same_continuation(ours: LanguageModel, theirs: torch.nn.Module, steps: int = 24) -> None:
    """Greedy, token by token behind a cache."""
    prompt = TOKENS[:, :9]
    length = {"max_new_tokens": steps, "min_new_tokens": steps, "eos_token_id": None, "pad_token_id": 0}
    expected = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, use_cache=True, **length)
    cache = KeyValueCache(len(ours.blocks))
    tokens, piece = prompt, prompt
    for _ in range(steps):
        made = sequence(ours, piece, tokens.shape[1] - piece.shape[1])
        rule = cache.extend(made.rule.queries)
        hidden, _ = ours(TokenSequence(made.embeddings, made.positions, rule, made.modality), cache)
        piece = ours.head(hidden[:, -1]).argmax(-1, keepdim=True)
        tokens = torch.cat((tokens, piece), 1)
    assert torch.equal(tokens, expected)


def assert_there_and_back(theirs, tmp_path) -> None:
    """Read, written, loaded by the reference's library and read again: no bit changes."""
    ours = to_weft(theirs, tmp_path / "theirs")
    again = to_transformers(ours, type(theirs), tmp_path / "ours")
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in again.state_dict().items())
    back = to_weft(again, tmp_path / "back")
    assert back.config == ours.config
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in back.state_dict().items())


def num_parameters(config: LanguageModel.Config) -> int:
    """Of a model that is never filled; shared ones once."""
    with without_values():
        return sum(parameter.numel() for parameter in config.build().parameters())
