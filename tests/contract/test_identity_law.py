"""Installing a fusion leaves text-only logits over the vocabulary bit-identical, on every language model that it can enter."""

import copy

import pytest
import torch

from weft.core.attention_rule import AttentionRule
from weft.core.catalogue import parts
from weft.core.errors import ConfigError
from weft.core.sequence import TokenSequence

TOKENS = torch.randint(0, 90, (2, 10), generator=torch.Generator().manual_seed(0))


def text_only_logits(language_model, fusion=None):
    embeddings = language_model.embed(TOKENS)
    positions = torch.arange(TOKENS.shape[1]).expand_as(TOKENS)
    sequence = TokenSequence(embeddings, positions, AttentionRule.causal(*TOKENS.shape), torch.zeros_like(TOKENS))
    if fusion is not None:
        sequence = fusion.fuse(sequence, {})
    hidden, _ = language_model(sequence)
    return language_model.head(hidden)


@pytest.mark.parametrize("fusion", parts("fusion"))
@pytest.mark.parametrize("language_model", parts("language_models"))
def test_text_only_output_is_unchanged(language_model, fusion):
    torch.manual_seed(0)
    plain = parts("language_models")[language_model].Config.tiny().build().eval()
    fused = copy.deepcopy(plain)
    part = parts("fusion")[fusion].Config.tiny().build()
    if not fused.slots and fusion != "token_concatenation":
        with pytest.raises(ConfigError, match=r"no slots .*; use token_concatenation, or one of .*decoder"):
            part.install(fused)
        return
    part.install(fused)
    names = dict(plain.named_parameters())
    kept = {name: p for name, p in fused.named_parameters() if name in names}
    assert list(kept) == list(names), "a fusion may add parameter names, never take one away"
    assert all(torch.equal(kept[name], names[name]) for name in names)
    assert torch.equal(text_only_logits(plain), text_only_logits(fused, part))
