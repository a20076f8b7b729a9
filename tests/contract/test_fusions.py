"""Every fusion in every language model that it can enter, gates open and experts all different: cached, packed, without media.

The suite runs over pairs in which each fusion and each language model has its turn, the exhaustive part over all.
"""

from dataclasses import replace

import numpy as np
import pytest
import tiny_training
import torch
from contract_conditions import is_key_bias, is_unread_expert, open_gates, reached
from tiny_model import scatter
from tiny_training import COLOURS, VOCABULARY, processor, tokenizer

from weft.core.batch import IGNORE
from weft.core.catalogue import parts
from weft.core.conversation import Conversation, Media, assistant, user
from weft.core.errors import ConfigError, DataError, MediaTokenMismatch
from weft.data.collate import collate
from weft.fusion.token_concatenation import TokenConcatenation
from weft.inference.continuation import before, behind
from weft.inference.generate import Decoding
from weft.objectives.next_token import NextToken

FUSIONS, LANGUAGE_MODELS = sorted(parts("fusion")), sorted(parts("language_models"))
SLOTLESS = [name for name in LANGUAGE_MODELS if not parts("language_models")[name].slots]
TOLERANCE = 1e-5  # fp32; the same sums over rows of other lengths


def able(language_model):
    return ["token_concatenation"] if language_model in SLOTLESS else FUSIONS


PAIRS = [(fusion, name) for name in LANGUAGE_MODELS for fusion in able(name)]
COVERING = {(fusion, "decoder") for fusion in FUSIONS}
COVERING |= {(able(name)[i % len(able(name))], name) for i, name in enumerate(LANGUAGE_MODELS)}
every_pair = pytest.mark.parametrize(
    ("fusion", "language_model"),
    [pytest.param(*pair, marks=() if pair in COVERING else pytest.mark.exhaustive, id="/".join(pair)) for pair in PAIRS],
)
every_fusion = pytest.mark.parametrize("fusion", FUSIONS)


def config(fusion, language_model="decoder"):
    tiny = replace(parts("language_models")[language_model].Config.tiny(), vocabulary=VOCABULARY, context=512)
    part = parts("fusion")[fusion].Config.tiny()
    fusions = (part,) if part.streams else (TokenConcatenation.Config(), part)
    return replace(tiny_training.system(), language_model=tiny, fusions=fusions)


def built(fusion, language_model="decoder"):
    torch.manual_seed(0)
    system = config(fusion, language_model).build().eval()
    scatter(system)
    open_gates(system)
    return system


def square(colour):
    return Media(np.full((32, 32, 3), COLOURS[colour], dtype=np.uint8))


TWO = (user(square("red"), "Which colour?"), assistant("red"), user(square("blue"), "Which?"), assistant("blue blue white"))
ONE = (user("Say white.", square("white")), assistant("white"))
NONE = (user("Say red."), assistant("red red"))


def encoded(system, *conversations):
    encoder = processor().build(tokenizer(), system.config)
    return [encoder.encode(Conversation(messages, id=str(i))) for i, messages in enumerate(conversations)]


def assert_close(ours, expected):
    assert float((ours - expected).detach().abs().amax()) <= TOLERANCE * max(1.0, float(expected.detach().abs().amax()))


def test_each_fusion_and_each_language_model_has_its_turn():
    assert set(PAIRS) >= COVERING
    assert [set(each) for each in zip(*COVERING, strict=True)] == [set(FUSIONS), set(LANGUAGE_MODELS)]
    assert {"token_concatenation", "cross_attention", "visual_expert"} <= set(FUSIONS)


@torch.no_grad()
@every_pair
def test_a_picture_changes_what_is_said_behind_it_and_nothing_before(fusion, language_model):
    system = built(fusion, language_model)
    batch = collate(encoded(system, TWO))
    second = int(batch.media["image"].spans[1, 3])
    other = batch.media["image"].units.clone()
    other[1] += 1
    plain, changed = (
        system(replace(batch, media={"image": replace(batch.media["image"], units=units)})).logits()[0]
        for units in (batch.media["image"].units, other)
    )
    assert torch.equal(plain[:second], changed[:second])
    assert (plain[-1] - changed[-1]).abs().amax() > 1e-3


@torch.no_grad()
@every_pair
def test_cached_decoding_is_the_full_forward(fusion, language_model):
    """The first picture's turn, then the second's, then the answer word by word."""
    system = built(fusion, language_model)
    batch = collate(encoded(system, TWO))
    expected = system(batch).logits()[0]
    tokens, spans = batch.main.tokens[0], batch.media["image"].spans
    turn, said = int(spans[1, 3]), int(spans[1, 3] + spans[1, 4]) + 1
    decoding = Decoding(system)
    assert_close(decoding.prefill(before(batch, turn))[0], expected[turn - 1])
    assert_close(decoding.prefill(behind(before(batch, said), turn))[0], expected[said - 1])
    for place in range(said, len(tokens)):
        assert_close(decoding.step(tokens[place : place + 1])[0], expected[place])


@every_pair
def test_packed_samples_have_the_logits_and_gradients_that_they_have_alone(fusion, language_model):
    system = built(fusion, language_model)
    samples, gradients = encoded(system, TWO, NONE, ONE), []
    packed = collate([samples])
    logits = system(packed).logits()[0]
    for sample, ref in zip(samples, packed.samples, strict=True):
        assert_close(logits[packed.main.segment[0] == ref.segment], system(collate([sample])).logits()[0])
    for batch in (packed, collate(samples)):
        system.zero_grad()
        NextToken(NextToken.Config())(system, batch).mean().backward()
        gradients.append({name: p.grad for name, p in system.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[1].items():
        assert_close(gradients[0][name], gradient)


@every_pair
def test_a_batch_of_text_alone_trains_and_reaches_every_part_that_media_go_through(fusion, language_model):
    system = built(fusion, language_model)
    loss = NextToken(NextToken.Config())(system, collate(encoded(system, NONE))).mean()
    loss.backward()
    assert loss.isfinite()
    joined = ("streams.image.projector.", ".before_attention.", ".routes.")
    added = {name: p for name, p in system.named_parameters() if any(part in name for part in joined)}
    assert added and [name for name, p in added.items() if p.grad is None] == []


@every_pair
def test_what_is_said_reaches_every_parameter_that_media_go_through(fusion, language_model):
    system = built(fusion, language_model)
    plain = replace(system.config, fusions=(TokenConcatenation.Config(),)).build()
    before = {name for name, _ in plain.named_parameters() if not name.startswith("streams.image.projector.")}
    added = {name for name, _ in system.named_parameters() if name not in before and not is_key_bias(name)}
    batch = collate(encoded(system, TWO, ONE))
    said = (batch.main.targets["text"] != IGNORE).flatten().nonzero().squeeze(1)
    left = added - reached(system, system(batch).logits("text", said))
    assert left == {name for name in added if is_unread_expert(name, system)}


# mistakes


@every_fusion
def test_a_picture_in_an_answer_is_refused(fusion):
    with pytest.raises(DataError, match=r"turn 2 \(assistant\) holds a medium"):
        encoded(built(fusion), (user("Which?"), assistant("this", square("red"))))


@every_fusion
def test_a_marker_without_a_picture_is_refused(fusion):
    with pytest.raises(DataError, match="writes the marker <image> 1 times itself, beside 1 image parts"):
        encoded(built(fusion), (user(square("red"), "<image> Which?"), assistant("red")))


@every_fusion
def test_a_picture_without_a_place_is_refused(fusion):
    system = built(fusion)
    batch = collate(encoded(system, TWO))
    media = batch.media["image"]
    lost = replace(batch, media={"image": replace(media, spans=media.spans[:1])})
    with pytest.raises(MediaTokenMismatch, match=r"stream 'image': the batch .*build processor and system from one config"):
        system(lost)


@every_fusion
def test_a_stream_is_named_once(fusion):
    part = parts("fusion")[fusion].Config.tiny()
    with pytest.raises(ConfigError, match=r"reads? (one|no) stream|read by exactly one fusion"):
        replace(config(fusion), fusions=(replace(part, streams=("image", "image")),))


@pytest.mark.parametrize("fusion", [name for name in FUSIONS if parts("fusion")[name].Config.tiny().streams])
def test_two_fusions_do_not_read_one_stream(fusion):
    both = (TokenConcatenation.Config(), parts("fusion")[fusion].Config.tiny())
    with pytest.raises(ConfigError, match="read by exactly one fusion"):
        replace(config(fusion), fusions=both)


@pytest.mark.parametrize("language_model", SLOTLESS)
@pytest.mark.parametrize("fusion", [name for name in FUSIONS if name != "token_concatenation"])
def test_a_language_model_without_slots_takes_no_fusion_that_needs_them(fusion, language_model):
    with pytest.raises(ConfigError, match=r"no slots .*; use token_concatenation, or one of .*decoder"):
        config(fusion, language_model).build()
