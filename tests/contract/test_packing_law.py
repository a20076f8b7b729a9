"""A packed row gives each sample the logits and the gradients that it has alone."""

from dataclasses import replace

import pytest
import torch
from tiny_training import Squares, processor, system, tokenizer

from weft.core.batch import IGNORE
from weft.data.collate import collate
from weft.data.packing import pack
from weft.layers.kernels import KERNELS, force_kernel
from weft.objectives.next_token import NextToken

SAMPLES = (0, 1, 4, 2, 3, 9, 5)  # with and without a picture, answers of one to five words
TOLERANCE = 1e-5  # fp32; the same sums over rows of other lengths


def setting():
    torch.manual_seed(0)
    model = system().build()
    encoder = processor().build(tokenizer(), system())
    dataset = Squares.Config().build()
    return model, [encoder.encode(dataset[i]) for i in SAMPLES]


def by_sample(batch, values):
    """Values [B, T, ...] of each sample's own tokens, by sample id."""
    return {s.id: values[s.row][batch.main.segment[s.row] == s.segment] for s in batch.samples}


def gradients_of(model, batch):
    model.zero_grad()
    NextToken(NextToken.Config())(model, batch).mean().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(params=[96, 160, 1024], ids="rows of {} tokens".format)
def packed(request):
    model, samples = setting()
    rows = pack(samples, request.param)
    assert any(len(row) > 1 for row in rows)
    return model, samples, collate(rows)


def test_every_sample_is_packed_once_and_whole(packed):
    _, samples, batch = packed
    assert sorted(s.id for s in batch.samples) == sorted(s.id for s in samples)
    assert batch.num_tokens == sum(len(s) for s in samples)
    assert int((batch.main.targets["text"] != IGNORE).sum()) == sum(int((s.targets != IGNORE).sum()) for s in samples)


def test_packed_logits_are_those_of_the_samples_alone(packed):
    model, samples, batch = packed
    with torch.no_grad():
        together = by_sample(batch, model(batch).logits())
        for sample in samples:
            alone = model(collate([sample])).logits()[0]
            assert torch.allclose(together[sample.id], alone, atol=TOLERANCE * max(1.0, float(alone.abs().max())))


def test_packed_gradients_are_those_of_one_sample_a_row(packed):
    model, samples, batch = packed
    packed_gradients, plain = gradients_of(model, batch), gradients_of(model, collate(samples))
    assert packed_gradients.keys() == plain.keys()
    for name, gradient in plain.items():
        assert torch.allclose(packed_gradients[name], gradient, atol=TOLERANCE * max(1.0, float(gradient.abs().max()))), name


@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_every_kernel_keeps_packed_samples_apart(kernel):
    model, samples = setting()
    batch = collate(pack(samples, 160))
    first = batch.samples[0]
    changed = batch.main.tokens.clone()
    others = (batch.main.segment[first.row] != first.segment) & (batch.main.modality[first.row] == 0)
    assert others.any()
    changed[first.row, others] = 7
    with torch.no_grad(), force_kernel(kernel):
        before = by_sample(batch, model(batch).logits())[first.id]
        after = by_sample(batch, model(replace(batch, main=replace(batch.main, tokens=changed))).logits())[first.id]
    assert torch.equal(before, after)
