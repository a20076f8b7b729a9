"""Installing a fusion leaves text-only logits over the vocabulary bit-identical, on every language model that it can enter."""

import copy
from dataclasses import replace

import pytest
import tiny_seq2seq
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


@torch.no_grad()
@pytest.mark.parametrize("fusion", parts("fusion"))
@pytest.mark.parametrize("language_model", tiny_seq2seq.ENCODER_DECODERS)
def test_what_a_decoder_says_of_a_text_is_unchanged_by_a_fusion_in_its_encoder(language_model, fusion):
    torch.manual_seed(0)
    plain = replace(tiny_seq2seq.system(language_model), streams={}, fusions=()).build().eval()
    fused = copy.deepcopy(plain)
    part = parts("fusion")[fusion].Config.tiny().build()
    part.install(fused.reading_half)
    fused.fusions.append(part)
    assert dict(plain.named_parameters()).keys() <= dict(fused.named_parameters()).keys()
    batch = tiny_seq2seq.text_batch(TOKENS, TOKENS.flip(1))
    expected = plain(batch).logits()
    assert torch.equal(fused(batch).logits(), expected)
    assert not torch.equal(plain(tiny_seq2seq.text_batch(TOKENS.flip(1), TOKENS.flip(1))).logits(), expected)
