"""A packed row gives each sample the logits and the gradients that it has alone, in every language model that exists."""

from dataclasses import replace

import pytest
import tiny_seq2seq
import torch
from contract_conditions import open_gates
from tiny_training import VOCABULARY, Squares, processor, system, tokenizer

from weft.core.batch import IGNORE
from weft.core.catalogue import parts
from weft.data.collate import collate
from weft.data.packing import pack
from weft.layers.kernels import KERNELS, force_kernel
from weft.objectives.next_token import NextToken

SAMPLES = (0, 1, 4, 2, 3, 9, 5)  # with and without a picture, answers of one to five words
TOLERANCE = 1e-5  # fp32; the same sums over rows of other lengths


READING = "{} and its encoder"
LANGUAGE_MODELS = [*sorted(parts("language_models")), *map(READING.format, tiny_seq2seq.ENCODER_DECODERS)]
every_language_model = pytest.mark.parametrize("language_model", LANGUAGE_MODELS)


def config_of(language_model):
    """A system of a language model alone or, for one with an encoder, once more of both halves."""
    for name in tiny_seq2seq.ENCODER_DECODERS:
        if language_model == READING.format(name):
            return tiny_seq2seq.system(name)
    tiny = replace(parts("language_models")[language_model].Config.tiny(), vocabulary=VOCABULARY)
    return replace(system(), language_model=tiny)


def setting(language_model="decoder"):
    torch.manual_seed(0)
    config = config_of(language_model)
    model = config.build()
    open_gates(model)
    encoder = processor().build(tokenizer(), config)
    dataset = Squares.Config().build()
    return model, [encoder.encode(dataset[i]) for i in SAMPLES]


def by_sample(batch, values):
    """Values [B, T, ...] of each sample's own tokens, by sample id."""
    return {s.id: values[s.row][batch.written.segment[s.row] == s.segment] for s in batch.samples}


def gradients_of(model, batch):
    model.zero_grad()
    NextToken(NextToken.Config())(model, batch).mean().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(
    params=[("decoder", 96), ("decoder", 1024), *((name, 160) for name in LANGUAGE_MODELS)],
    ids=lambda case: f"{case[0]}, rows of {case[1]} tokens",
)
def packed(request):
    language_model, length = request.param
    model, samples = setting(language_model)
    rows = pack(samples, length)
    assert any(len(row) > 1 for row in rows)
    return model, samples, collate(rows)


def test_every_sample_is_packed_once_and_whole(packed):
    _, samples, batch = packed
    assert sorted(s.id for s in batch.samples) == sorted(s.id for s in samples)
    both = [(s.tokens, s.targets) for s in samples] + [(s.decoder.tokens, s.decoder.targets) for s in samples if s.decoder]
    assert batch.num_tokens == sum(len(tokens) for tokens, _ in both)
    assert int((batch.written.targets["text"] != IGNORE).sum()) == sum(int((t != IGNORE).sum()) for _, t in both)
    if batch.decoder is not None:
        assert batch.main.segment.amax(1).equal(batch.decoder.segment.amax(1)), "both sides of a row share segment numbers"


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


@every_language_model
@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_every_kernel_keeps_packed_samples_apart(kernel, language_model):
    model, samples = setting(language_model)
    batch = collate(pack(samples, 160))
    first = batch.samples[0]
    sides = {"main": batch.main} if batch.decoder is None else {"main": batch.main, "decoder": batch.decoder}
    for name, side in sides.items():
        tokens = side.tokens.clone()
        others = (side.segment[first.row] != first.segment) & (side.modality[first.row] == 0)
        assert others.any()
        tokens[first.row, others] = 7
        sides[name] = replace(side, tokens=tokens)
    with torch.no_grad(), force_kernel(kernel):
        before = by_sample(batch, model(batch).logits())[first.id]
        after = by_sample(batch, model(replace(batch, **sides)).logits())[first.id]
    assert torch.equal(before, after)


@every_language_model
def test_every_kernel_gives_every_language_model_the_same_logits(language_model):
    """On packed rows and on one sample a row, whatever the model adds to its scores."""
    model, samples = setting(language_model)
    for batch in (collate(pack(samples, 160)), collate(samples)):
        there = batch.written.segment > 0
        found = {}
        for name in sorted(KERNELS):
            with torch.no_grad(), force_kernel(name):
                found[name] = model(batch).logits()[there]
        bound = TOLERANCE * max(1.0, float(found["reference"].abs().max()))
        assert all((logits - found["reference"]).abs().max() <= bound for logits in found.values())
