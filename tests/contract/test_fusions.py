"""Every form of every fusion in every language model that it can enter: who sees what, cached, packed, without media.

Gates are open and experts all different. An encoder-decoder is there twice: as a language model alone, and with its encoder,
which reads the media. The other forms of language models that published layouts hold meet one form of a fusion each in the
suite and all of them in the exhaustive part.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from contract_conditions import is_key_bias, is_unread_expert, reached
from tiny_fusions import (
    CAUSAL_PAIRS,
    FORMS,
    LANGUAGE_MODELS,
    NEEDS_SLOTS,
    READING,
    READING_PAIRS,
    SLOTLESS,
    built,
    config,
)
from tiny_training import COLOURS, processor, tokenizer

from weft.core.batch import IGNORE
from weft.core.catalogue import parts
from weft.core.conversation import Conversation, Media, assistant, user
from weft.core.errors import ConfigError, DataError, MediaTokenMismatch
from weft.data.collate import collate
from weft.fusion.cross_attention import SLOT, CrossAttention, GatedSwiGLU
from weft.fusion.token_concatenation import TokenConcatenation
from weft.fusion.visual_expert import VisualExpert
from weft.inference.continuation import before, behind, with_tokens
from weft.inference.generate import Decoding
from weft.layers.kernels import KERNELS, force_kernel
from weft.layers.slots import BlockContext, PassThrough
from weft.objectives.next_token import NextToken

FUSIONS, KINDS = sorted(parts("fusion")), sorted(parts("language_models"))
TOLERANCE = 1e-5  # fp32; the same sums over rows of other lengths
END = 2  # the token that ends each answer and with it, where the rule knows documents, a document
TURNS = set(zip(itertools.cycle(FORMS), LANGUAGE_MODELS, strict=False))  # which form a language model meets in the suite


def over(pairs):
    def case(form, name):
        kind = name.removesuffix(READING)
        seldom = kind not in KINDS and (form, kind) not in TURNS
        return pytest.param(form, name, marks=pytest.mark.exhaustive if seldom else (), id=f"{form}/{name}")

    return pytest.mark.parametrize(("form", "language_model"), list(itertools.starmap(case, pairs)))


every_pair, every_causal_pair, every_reading_pair = map(over, (CAUSAL_PAIRS + READING_PAIRS, CAUSAL_PAIRS, READING_PAIRS))
every_fusion = pytest.mark.parametrize("fusion", FUSIONS)


def square(colour):
    return Media(np.full((32, 32, 3), COLOURS[colour], dtype=np.uint8))


TWO = (user(square("red"), "Which colour?"), assistant("red"), user(square("blue"), "Which?"), assistant("blue blue white"))
BESIDE = (
    *(user(square("red"), "Which?"), assistant("red"), user(square("blue"), square("green"), "And?"), assistant("white")),
    *(user("Say red."), assistant("red")),
)
ONE = (user("Say white.", square("white")), assistant("white"))
NONE = (user("Say red."), assistant("red red"))


def encoded(system, *conversations, reply=False):
    """Samples: one a conversation or, where a decoder writes, one an answer."""
    encoder = replace(processor(), template="cogvlm_base").build(tokenizer(), system.config)
    spoken = [Conversation(messages, id=str(i)) for i, messages in enumerate(conversations)]
    if reply:
        return [encoder.encode(replace(each, messages=each.messages[:-1]), reply=True) for each in spoken]
    return [sample for each in spoken for sample in encoder.encode_all(each)]


def with_another(batch, picture):
    """The batch with other pixels in one picture."""
    media = batch.media["image"]
    units = media.units.clone()
    units[picture] += 1
    return replace(batch, media={"image": replace(media, units=units)})


def assert_close(ours, expected):
    assert float((ours - expected).detach().abs().amax()) <= TOLERANCE * max(1.0, float(expected.detach().abs().amax()))


def test_every_fusion_and_every_kind_of_form_meets_every_language_model():
    """The forms come out of recipes and layouts: that they hold what the papers differ in is counted here."""
    kinds = {type(each) for form in FORMS.values() for each in form}
    assert kinds == {parts("fusion")[name].Config for name in FUSIONS}
    crossing = [each for form in FORMS.values() for each in form if isinstance(each, CrossAttention.Config)]
    experts = {(e.attention, e.closing) for form in FORMS.values() for e in form if isinstance(e, VisualExpert.Config)}
    assert {each.visibility for each in crossing} >= {"preceding", "preceding_in_document", "run"}
    assert {each.block.gates for each in crossing if isinstance(each.block, GatedSwiGLU)} == {"scalar", "vector"}
    assert {(each.every, each.first) for each in crossing} >= {(1, 0), (2, 0), (2, 1)}
    assert experts >= {(True, "text"), (False, "visual")}
    meeting = {name: {form for form, other in CAUSAL_PAIRS if other == name} for name in LANGUAGE_MODELS}
    assert all(meeting[name] == set(FORMS) - set(NEEDS_SLOTS if name in SLOTLESS else ()) for name in KINDS)
    assert {form for form, _ in READING_PAIRS} == set(FORMS)
    assert {name for form, name in TURNS if form in meeting[name]} >= set(LANGUAGE_MODELS) - set(KINDS)


def expected_to_see(system, batch, picture):
    """The tokens of one row to which a picture is shown, counted in the text from the papers' words."""
    rule, length = system.config.visibility("image"), batch.main.tokens.shape[1]
    tags, sizes = batch.media["image"].spans[:, 3].tolist(), batch.media["image"].spans[:, 4].tolist()
    assert tags[2] == tags[1] + sizes[1], "side by side"
    if rule is None:
        return list(range(tags[picture], tags[picture] + sizes[picture]))
    following = [tag for tag in tags if tag > tags[picture] and (rule != "run" or tag - 1 not in tags)]
    ends = [place + 1 for place in range(tags[picture], length) if batch.main.tokens[0, place] == END]
    return list(range(tags[picture], min([length, *following, *(ends if rule == "preceding_in_document" else ())])))


@torch.no_grad()
@every_pair
def test_a_picture_is_shown_to_the_tokens_that_the_rule_names_and_to_no_other(form, language_model):
    """Where media first enter, before any token has looked at another; two of three pictures stand side by side."""
    system = built(form, language_model)
    batch = collate(encoded(system, BESIDE)[-1:])
    slots = (getattr(block, SLOT) for block in system.reading_half.blocks if form in NEEDS_SLOTS)
    slot = next((slot for slot in slots if not isinstance(slot, PassThrough)), PassThrough())

    def shown(batch):
        sequence = system.fused(batch)
        return slot(sequence.embeddings, sequence.memory, BlockContext(sequence.rule))[0]

    plain = shown(batch)
    for picture in range(3):
        changed = (shown(with_another(batch, picture)) != plain).any(-1)[0]
        assert changed.nonzero().flatten().tolist() == expected_to_see(system, batch, picture)


@torch.no_grad()
@every_causal_pair
def test_a_picture_changes_what_is_said_behind_it_and_nothing_before(form, language_model):
    system = built(form, language_model)
    batch = collate(encoded(system, TWO))
    second = int(batch.media["image"].spans[1, 3])
    plain, changed = (system(each).logits()[0] for each in (batch, with_another(batch, 1)))
    assert torch.equal(plain[:second], changed[:second])
    assert (plain[-1] - changed[-1]).abs().amax() > 1e-3


@torch.no_grad()
@every_reading_pair
def test_a_picture_that_an_encoder_reads_changes_every_token_that_is_said_of_it_and_no_other_sample(form, language_model):
    system = built(form, language_model)
    batch = collate(encoded(system, ONE, TWO))
    plain, changed = (system(each).logits() for each in (batch, with_another(batch, 0)))
    said = batch.decoder.segment > 0
    assert ((plain[0] - changed[0]).abs().amax(-1)[said[0]] > 1e-4).all()  # a tied head's logits are small
    assert torch.equal(plain[1:][said[1:]], changed[1:][said[1:]])


@torch.no_grad()
@every_pair
def test_cached_decoding_is_the_full_forward(form, language_model):
    """The first picture's turn, then the second's, then the answer word by word; an encoder reads both turns at once."""
    system = built(form, language_model)
    batch = collate(encoded(system, TWO)[-1:])
    expected, tokens, spans = system(batch).logits()[0], batch.written.tokens[0], batch.media["image"].spans
    turns = (int(spans[1, 3]), int(spans[1, 3] + spans[1, 4]) + 1) if batch.decoder is None else (1,)
    decoding = Decoding(system)
    for start, stop in itertools.pairwise((0, *turns)):
        assert_close(decoding.prefill(behind(before(batch, stop), start))[0], expected[stop - 1])
    assert turns[-1] < len(tokens)
    for place in range(turns[-1], len(tokens)):
        assert_close(decoding.step(tokens[place : place + 1])[0], expected[place])


@torch.no_grad()
@every_pair
def test_rows_side_by_side_go_on_as_each_alone(form, language_model):
    """With two pictures, one and none, in texts of different lengths."""
    system = built(form, language_model)
    prompts = encoded(system, TWO, ONE, NONE, reply=True)
    following = torch.randint(10, 250, (3, 3), generator=torch.Generator().manual_seed(3))
    decoding = Decoding(system)
    logits = [decoding.prefill(collate(prompts)), *map(decoding.step, following.T)]
    for row, prompt in enumerate(prompts):
        alone = system(with_tokens(collate([prompt]), following[row].tolist())).logits()[0]
        assert_close(torch.stack([step[row] for step in logits]), alone[-len(logits) :])


@every_pair
def test_packed_samples_have_the_logits_and_gradients_that_they_have_alone(form, language_model):
    system = built(form, language_model)
    samples, gradients = encoded(system, TWO, NONE, ONE), []
    packed = collate([samples])
    with torch.no_grad():
        logits = system(packed).logits()[0]
        for sample, ref in zip(samples, packed.samples, strict=True):
            assert_close(logits[packed.written.segment[0] == ref.segment], system(collate([sample])).logits()[0])
    for batch in (packed, collate(samples)):
        system.zero_grad()
        NextToken(NextToken.Config())(system, batch).mean().backward()
        gradients.append({name: p.grad for name, p in system.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[1].items():
        assert_close(gradients[0][name], gradient)


@torch.no_grad()
@every_pair
def test_every_kernel_gives_packed_samples_the_same_logits(form, language_model):
    system = built(form, language_model)
    packed = collate([encoded(system, TWO, NONE, ONE)])
    with force_kernel("reference"):
        expected = system(packed).logits()
    for kernel in KERNELS.keys() - {"reference"}:
        with force_kernel(kernel):
            assert_close(system(packed).logits(), expected)


@every_pair
def test_a_batch_of_text_alone_trains_and_reaches_every_part_that_media_go_through(form, language_model):
    system = built(form, language_model)
    system.zero_grad()
    loss = NextToken(NextToken.Config())(system, collate(encoded(system, NONE))).mean()
    loss.backward()
    assert loss.isfinite()
    joined = ("streams.image.projector.", ".before_attention.", ".routes.")
    added = {name: p for name, p in system.named_parameters() if any(part in name for part in joined)}
    assert added and [name for name, p in added.items() if p.grad is None] == []


@every_pair
def test_what_is_said_reaches_every_parameter_that_media_go_through(form, language_model):
    system = built(form, language_model)
    plain = built("token_concatenation", language_model)
    before = {name for name, _ in plain.named_parameters() if not name.startswith("streams.image.projector.")}
    added = {name for name, _ in system.named_parameters() if name not in before and not is_key_bias(name)}
    batch = collate(encoded(system, TWO, ONE))
    said = (batch.written.targets["text"] != IGNORE).flatten().nonzero().squeeze(1)
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
@pytest.mark.parametrize("form", NEEDS_SLOTS)
def test_a_language_model_without_slots_takes_no_fusion_that_needs_them(form, language_model):
    with pytest.raises(ConfigError, match=r"no slots .*; use token_concatenation, or one of .*decoder"):
        config(form, language_model).build()


@pytest.mark.parametrize("language_model", [name for name in KINDS if name not in SLOTLESS])
def test_a_block_asks_the_language_model_for_the_sizes_that_it_has_not_itself(language_model):
    tiny = config("token_concatenation", language_model)
    whole = replace(tiny, fusions=(CrossAttention.Config(block=GatedSwiGLU()),))
    if hasattr(whole.language_model, "feed_forward_width"):
        block = whole.build().language_model.blocks[0].before_attention
        assert block.feed_forward.up.out_features == whole.language_model.feed_forward_width
        return
    with pytest.raises(ConfigError, match="has no feed_forward_width; say the block's own"):
        whole.build()
