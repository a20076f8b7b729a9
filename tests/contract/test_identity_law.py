"""Installing a fusion leaves text-only logits over the vocabulary bit-identical, in every form and every language model that it
can enter."""

import copy
from dataclasses import replace

import pytest
import tiny_seq2seq
import torch
from tiny_fusions import CAUSAL_PAIRS, FORMS, LANGUAGE_MODELS, NEEDS_SLOTS, READING, READING_PAIRS, SLOTLESS, fitted

from weft.core.attention_rule import AttentionRule
from weft.core.errors import ConfigError
from weft.core.sequence import TokenSequence

TOKENS = torch.randint(0, 90, (2, 10), generator=torch.Generator().manual_seed(0))
every_causal_pair = pytest.mark.parametrize(("form", "language_model"), CAUSAL_PAIRS, ids=map("/".join, CAUSAL_PAIRS))
every_reading_pair = pytest.mark.parametrize(("form", "language_model"), READING_PAIRS, ids=map("/".join, READING_PAIRS))


def text_only_logits(language_model, fusions=()):
    embeddings = language_model.embed(TOKENS)
    positions = torch.arange(TOKENS.shape[1]).expand_as(TOKENS)
    sequence = TokenSequence(embeddings, positions, AttentionRule.causal(*TOKENS.shape), torch.zeros_like(TOKENS))
    for fusion in fusions:
        sequence = fusion.fuse(sequence, {})
    hidden, _ = language_model(sequence)
    return language_model.head(hidden)


def installed(form, language_model):
    """A form's fusions, in the language model from now on."""
    fusions = [each.build() for each in fitted(FORMS[form], language_model.config)]
    for fusion in fusions:
        fusion.install(language_model)
    return fusions


@every_causal_pair
def test_text_only_output_is_unchanged(form, language_model):
    """In training too, where what is idle joins the graph."""
    torch.manual_seed(0)
    plain = LANGUAGE_MODELS[language_model].build().eval()
    fused = copy.deepcopy(plain)
    fusions = installed(form, fused)
    names = dict(plain.named_parameters())
    kept = {name: p for name, p in fused.named_parameters() if name in names}
    assert list(kept) == list(names), "a fusion may add parameter names, never take one away"
    assert all(torch.equal(kept[name], names[name]) for name in names)
    assert (len(kept) < len(dict(fused.named_parameters()))) == (form in NEEDS_SLOTS)
    for training in (True, False):
        with torch.set_grad_enabled(training):
            assert torch.equal(text_only_logits(plain), text_only_logits(fused, fusions))


@pytest.mark.parametrize("form", NEEDS_SLOTS)
@pytest.mark.parametrize("language_model", SLOTLESS)
def test_a_language_model_without_slots_is_left_as_it_was(language_model, form):
    model = LANGUAGE_MODELS[language_model].build()
    names = list(dict(model.named_parameters()))
    with pytest.raises(ConfigError, match=r"no slots .*; use token_concatenation, or one of .*decoder"):
        installed(form, model)
    assert list(dict(model.named_parameters())) == names


@torch.no_grad()
@every_reading_pair
def test_what_a_decoder_says_of_a_text_is_unchanged_by_a_fusion_in_its_encoder(form, language_model):
    torch.manual_seed(0)
    whole = replace(tiny_seq2seq.system(), language_model=LANGUAGE_MODELS[language_model.removesuffix(READING)])
    plain = replace(whole, streams={}, fusions=()).build().eval()
    fused = copy.deepcopy(plain)
    fused.fusions.extend(installed(form, fused.reading_half))
    assert dict(plain.named_parameters()).keys() <= dict(fused.named_parameters()).keys()
    batch = tiny_seq2seq.text_batch(TOKENS, TOKENS.flip(1))
    expected = plain(batch).logits()
    assert torch.equal(fused(batch).logits(), expected)
    assert not torch.equal(plain(tiny_seq2seq.text_batch(TOKENS.flip(1), TOKENS.flip(1))).logits(), expected)
