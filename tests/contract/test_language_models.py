"""What holds for every language model beside the laws of cache, packing and identity."""

import copy
import math
import re

import pytest
import torch
from contract_conditions import is_key_bias, open_gates, reached
from tiny_model import language_models
from torch import nn

from weft.core.attention_rule import AttentionRule
from weft.core.catalogue import parts
from weft.core.interfaces import EncoderDecoder
from weft.core.sequence import TokenSequence

TOKENS = torch.randint(0, 90, (2, 10), generator=torch.Generator().manual_seed(0))
LANGUAGE_MODELS = language_models()
SLOTTED = tuple(part.Config for part in parts("language_models").values() if part.slots)
WITH_SLOTS = [name for name, config in LANGUAGE_MODELS.items() if isinstance(config, SLOTTED)]


def built(name, scale=1.0):
    torch.manual_seed(0)
    model = LANGUAGE_MODELS[name].build().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= scale
    open_gates(model)
    return model


def sequence(model, tokens=TOKENS):
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    rule = AttentionRule.causal(*tokens.shape)
    return TokenSequence(model.embed(tokens), positions, rule, torch.zeros_like(tokens))


def assert_close(ours, expected):
    """In float32; kernels sum in an order that depends on where tensors lie in memory."""
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max().item()))


class Adding(nn.Module):
    """A filled slot that notes what it was given and adds a ramp, which no norm takes away, to the last token."""

    def __init__(self, note):
        super().__init__()
        self.note = note

    def forward(self, hidden, memory, context):
        self.note(hidden)
        last = torch.zeros_like(hidden)
        last[:, -1] = torch.linspace(0, 2, hidden.shape[-1])
        return hidden + last, memory


@torch.no_grad()
@pytest.mark.parametrize("name", WITH_SLOTS)
def test_every_slot_of_every_block_is_passed_once_in_order_and_has_an_effect(name):
    model = built(name, scale=10.0)
    places = [(layer, slot) for layer in range(len(model.blocks)) for slot in model.slots]
    shape = (*TOKENS.shape, model.config.output_width)
    plain, _ = model(sequence(model))
    seen = []
    for layer, slot in places:
        filled = copy.deepcopy(model)
        setattr(filled.blocks[layer], slot, Adding(lambda hidden: None))
        changed, _ = filled(sequence(model))
        assert not torch.allclose(changed[:, -1], plain[:, -1]), (layer, slot)
        assert_close(changed[:, :-1], plain[:, :-1])  # nobody else knows the last token
    for place in places:
        setattr(model.blocks[place[0]], place[1], Adding(lambda hidden, place=place: seen.append((place, hidden.shape))))
    model(sequence(model))
    assert seen == [(place, shape) for place in places]


@torch.no_grad()
@pytest.mark.parametrize("name", WITH_SLOTS)
def test_a_forward_may_be_cut_between_blocks(name):
    """The memory goes along, and what stands before the first block and behind the last comes once."""
    model = built(name)
    start = sequence(model)
    whole, _ = model(start)
    half, memory = model(start, stop=1)
    rest, _ = model(TokenSequence(half, start.positions, start.rule, start.modality, memory), start=1)
    assert_close(rest, whole)


@torch.no_grad()
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_rule_keeps_nothing_of_the_weights_that_it_was_used_with(name):
    model = built(name)
    used = sequence(model)
    model(used)
    for parameter in model.parameters():
        parameter.data *= 1.5
    fresh = sequence(model)
    again, _ = model(TokenSequence(fresh.embeddings, used.positions, used.rule, used.modality))
    assert_close(again, model(fresh)[0])


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_what_is_said_reaches_every_parameter_that_a_text_goes_through(name):
    model = built(name)
    names = {n for n, _ in model.named_parameters() if not is_key_bias(n)}
    if isinstance(model, EncoderDecoder):  # the reading half, and what looks at it: trained where there is something to read
        names = {n for n in names if not re.match(r"encoder\.|blocks\.\d+\.before_feed_forward\.", n)}
    assert names - reached(model, model.head(model(sequence(model))[0])) == set()


@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16 weights", "autocast"])
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_bfloat16_is_close_to_float32_and_trains(name, autocast):
    model = built(name)
    with torch.no_grad():
        expected = model.head(model(sequence(model))[0])
    model = model if autocast else model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model.head(model(sequence(model))[0])
        assert logits.dtype == torch.bfloat16
        logits.float().logsumexp(-1).sum().backward()
    # 8 bits of mantissa through two layers
    assert (logits.float() - expected).abs().max() <= 0.05 * max(1.0, expected.abs().max().item())
    gradients = [p.grad for p in model.parameters() if p.grad is not None]  # what reads media has none here
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_prompt_that_knows_no_order_is_read_without_one(name):
    """Among tokens of equal order each sees all: the last token's change reaches the first."""
    model = built(name, scale=10.0)
    rule = AttentionRule.bidirectional(*TOKENS.shape)
    changed = TOKENS.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 90
    with torch.no_grad():
        one, other = (
            model(TokenSequence(model.embed(t), rule.queries.position, rule, torch.zeros_like(t)))[0] for t in (TOKENS, changed)
        )
    assert not torch.allclose(one[:, 0], other[:, 0])


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_fresh_model_guesses(name):
    torch.manual_seed(0)
    model = LANGUAGE_MODELS[name].build().eval()
    with torch.no_grad():
        hidden, _ = model(sequence(model))
        chances = torch.log_softmax(model.head(hidden).float(), -1)
    # T5 starts with scores of deviation 1: half a nat above guessing evenly; none starts sure of what it cannot know
    assert -chances.mean() < math.log(chances.shape[-1]) + 1
