"""The mask law for encoder-decoders: the prompt to the encoder, the last answer to the decoder, both encoded as T5 does."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_samples import MULTILINGUAL, NUM_POSITIONS, FourPositions, byte_level, write_t5

from weft.core.batch import IGNORE
from weft.core.conversation import Conversation, Media, assistant, user
from weft.core.errors import ContextTooShort, DataError
from weft.data.collate import collate
from weft.data.images import ImageTransform
from weft.data.packing import pack
from weft.data.processor import Processor
from weft.data.templates import TEMPLATES
from weft.data.tokenizers import Tokenizer

SIDE = 28
PICTURE = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
START, END = 0, 1
CHAT_TEMPLATES = [name for name, template in TEMPLATES.items() if not template.caption and not template.answer_divided]


@dataclass(frozen=True, kw_only=True)
class Reading(FourPositions):
    """The same for a system with a decoder."""

    @property
    def decoder_start(self) -> int:
        return START


@cache
def t5():
    """Our tokenizer and the library's, from one file."""
    transformers = pytest.importorskip("transformers")
    with TemporaryDirectory() as name:
        write_t5(Path(name))
        return Tokenizer.from_file(name), transformers.AutoTokenizer.from_pretrained(name)


def processor(template="blip_2_t5", tokenizer=None):
    config = Processor.Config(template=template, transforms={"image": ImageTransform(size=SIDE)})
    return config.build(tokenizer or t5()[0], Reading())


words = st.sampled_from([text for text in MULTILINGUAL if text.strip() and not any(t in text for t in ("▁", "<"))])
turns = st.lists(st.tuples(words, words), min_size=1, max_size=3)


def conversation(turns, picture=True):
    messages = []
    for number, (question, answer) in enumerate(turns):
        opening = (Media(PICTURE),) if picture and number == 0 else ()
        messages += [user(*opening, question), assistant(answer, train=number == len(turns) - 1)]
    return Conversation(tuple(messages), id="7", source="test")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(turns=turns, picture=st.booleans())
def test_both_sides_have_the_ids_of_the_reference(turns, picture):
    """Queries, prompt and end as BLIP-2 reads them; the answer as labels and, moved by the start token, as decoder input."""
    sample = processor().encode(conversation(turns, picture))
    told = "".join(f"Question: {q.strip() if picture and not n else q} Answer: {a} " for n, (q, a) in enumerate(turns))
    prompt = told[: len(told) - len(f" {turns[-1][1]} ")]
    queries = NUM_POSITIONS if picture else 0
    assert sample.tokens[queries:].tolist() == t5()[1](prompt).input_ids
    assert sample.modality.tolist() == [1] * queries + [0] * (len(sample) - queries)
    assert (sample.targets == IGNORE).all()
    labels = t5()[1](" " + turns[-1][1]).input_ids
    assert sample.decoder.targets.tolist() == labels
    assert sample.decoder.tokens.tolist() == [START, *labels[:-1]]


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(turns=turns)
def test_exactly_the_last_answer_and_its_end_are_learned_in_every_template(template, turns):
    ready, form = processor(template, byte_level()), TEMPLATES[template]
    sample = ready.encode(conversation(turns))
    assert (sample.targets == IGNORE).all()
    assert not (sample.decoder.targets == IGNORE).any()
    end = form.answer_end or "</s>"
    expected = form.answer_lead + turns[-1][1] + form.answer_end
    said = ready.tokenizer.decode(sample.decoder.targets, skip_special=False)
    assert said in (expected, expected + "</s>") and said.endswith((end, "</s>"))
    assert sample.text.endswith(expected)


def test_a_prompt_to_be_answered_is_the_one_that_was_learned_from():
    spoken = conversation([("What is it?", "a cat"), ("And now?", "a dog")])
    learned = processor().encode(spoken)
    asked = processor().encode(replace(spoken, messages=spoken.messages[:-1]), reply=True)
    assert asked.tokens.tolist() == learned.tokens.tolist()
    assert asked.decoder.tokens.tolist() == [START] and asked.decoder.targets.tolist() == [IGNORE]


def test_an_answer_that_is_not_trained_is_written_and_not_learned():
    spoken = conversation([("What is it?", "a cat")])
    silent = replace(spoken, messages=(spoken.messages[0], replace(spoken.messages[1], train=False)))
    sample = processor().encode(silent)
    assert (sample.decoder.targets == IGNORE).all()
    assert sample.decoder.tokens.tolist() == processor().encode(spoken).decoder.tokens.tolist()


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ((user("a"), assistant("b"), user("c"), assistant("d")), "1 turns before it are marked .*train=False"),
        ((user("a"), assistant("b"), user("c")), "1 turns before it are marked"),
        ((user("a"), assistant(Media(PICTURE), "b")), "turn 2, the answer, holds a medium"),
        ((user("a"), assistant("an <image>")), "writes the marker <image> 1 times itself"),
    ],
)
def test_what_a_decoder_cannot_write_is_refused(messages, match):
    with pytest.raises(DataError, match=match):
        processor().encode(Conversation(messages, id="7"))


def dialogue(turns, trained, picture=True):
    spoken = conversation(turns, picture)
    answers = iter(trained)
    messages = tuple(replace(m, train=next(answers)) if m.role == "assistant" else m for m in spoken.messages)
    return replace(spoken, messages=messages)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data(), turns=turns, picture=st.booleans())
def test_every_answer_that_is_learned_is_a_sample_with_all_before_it_in_what_the_encoder_reads(data, turns, picture):
    trained = data.draw(st.lists(st.booleans(), min_size=len(turns), max_size=len(turns)))
    spoken = dialogue(turns, trained, picture)
    samples = processor().encode_all(spoken)
    learned = [number for number, train in enumerate(trained) if train]
    if not learned:
        (sample,) = samples
        assert (sample.decoder.targets == IGNORE).all() and (sample.targets == IGNORE).all()
        return
    assert [sample.id for sample in samples] == ["7", *(f"7.{n}" for n in range(2, len(learned) + 1))]
    for number, sample in zip(learned, samples, strict=True):
        alone = processor().encode(conversation(turns[: number + 1], picture))
        assert sample.tokens.tolist() == alone.tokens.tolist() and (sample.targets == IGNORE).all()
        assert sample.decoder.tokens.tolist() == alone.decoder.tokens.tolist()
        assert sample.decoder.targets.tolist() == t5()[1](" " + turns[number][1]).input_ids
    assert [len(sample.media.get("image", ())) for sample in samples] == [int(picture)] * len(samples)


def test_turns_of_a_dialogue_show_their_picture_once_and_pack():
    turns = [("What is it?", "a cat"), ("And now?", "a dog"), ("Where?", "on a mat")]
    samples = processor().encode_all(dialogue(turns, [True] * 3))
    batch = collate(pack(samples, 200))
    assert len(batch.media["image"].layout) == 1 and len(batch.media["image"].spans) == len(batch.samples) == 3
    assert int((batch.decoder.targets["text"] != IGNORE).sum()) == sum(len(s.decoder.targets) for s in samples)


def test_answers_whose_question_lies_beyond_the_length_are_left_out():
    """As a text of one piece would have been cut: what comes first stays."""
    turns = [("What is it? " * 4, "a cat"), ("And now?", "a dog on a mat " * 9), ("Where? " * 9, "on a mat")]
    spoken = dialogue(turns, [True] * 3)
    whole = processor().encode_all(spoken)
    limit = len(whole[1])
    first, second = processor().encode_all(spoken, max_tokens=limit)
    assert (first.id, second.id) == ("7", "7.2") and first.tokens.tolist() == whole[0].tokens.tolist()
    assert second.decoder.tokens.tolist() == whole[1].decoder.tokens[:limit].tolist()
    (only,) = processor().encode_all(spoken, max_tokens=16)
    assert only.tokens.tolist() == processor().encode(conversation(turns[:1]), max_tokens=16).tokens.tolist()


def test_a_system_without_a_decoder_makes_one_sample_of_a_dialogue():
    config = Processor.Config(template="blip_2_t5", transforms={"image": ImageTransform(size=SIDE)})
    plain = config.build(t5()[0], FourPositions())
    spoken = dialogue([("What is it?", "a cat"), ("And now?", "a dog")], [True, True])
    (sample,) = plain.encode_all(spoken)
    assert sample.tokens.tolist() == plain.encode(spoken).tokens.tolist()
    assert sample.targets.tolist() == plain.encode(spoken).targets.tolist()


def test_each_side_is_cut_at_its_own_end_and_media_never():
    ready = processor()
    spoken = conversation([("What is it? " * 20, "a cat on a mat " * 20)])
    whole, cut = ready.encode(spoken), ready.encode(spoken, max_tokens=16)
    assert len(cut) == 16 and cut.tokens[-1] == END and cut.tokens[:15].tolist() == whole.tokens[:15].tolist()
    assert cut.decoder.tokens.tolist() == whole.decoder.tokens[:16].tolist()
    assert END not in cut.decoder.targets
    with pytest.raises(ContextTooShort, match="medium 1 of 1 needs 4 positions"):
        ready.encode(spoken, max_tokens=4)
    with pytest.raises(ContextTooShort, match="prompt needs"):
        ready.encode(replace(spoken, messages=spoken.messages[:1]), max_tokens=16, reply=True)


def test_a_packed_row_has_room_for_both_sides():
    """One sample reads much and says little, another the other way round: neither side of a row is longer than was asked."""
    ready = processor()
    long, short = "a cat on a mat " * 6, "a cat"
    pairs = {"reads": (long, short), "says": (short, long), "neither": (short, short)}
    samples = {name: replace(ready.encode(conversation([pair], picture=False)), id=name) for name, pair in pairs.items()}
    limit = max(sample.row_length for sample in samples.values()) + samples["neither"].row_length
    batch = collate(pack(list(samples.values()), limit))
    assert batch.main.tokens.shape[1] <= limit and batch.decoder.tokens.shape[1] <= limit
    assert len(batch.main.tokens) == 2
    for ref in batch.samples:
        sample = samples[ref.id]
        for side, tokens in ((batch.main, sample.tokens), (batch.decoder, sample.decoder.tokens)):
            here = side.segment[ref.row] == ref.segment
            assert side.tokens[ref.row][here].tolist() == tokens.tolist()
            assert side.positions[ref.row][here].tolist() == list(range(len(tokens)))
    read = batch.main.segment > 0
    assert (batch.main.order[read] == 0).all(), "an encoder's tokens see one another"
    assert (batch.decoder.order == batch.decoder.positions).all()


def test_samples_of_two_kinds_of_system_are_not_mixed():
    one = processor().encode(conversation([("What is it?", "a cat")]))
    with pytest.raises(DataError, match="some samples of a batch have a decoder side and some have none"):
        collate([one, replace(one, decoder=None)])
