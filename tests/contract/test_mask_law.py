"""The mask law: rendered once, encoded as the reference encodes, and exactly the trained words and their end are targets."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizer_samples import (
    MULTILINGUAL,
    NUM_POSITIONS,
    SPECIAL,
    FourPositions,
    byte_level,
    legacy_llama,
    write_llama,
)

from weft.core.batch import IGNORE
from weft.core.conversation import Conversation, Media, assistant, user
from weft.data.images import ImageTransform
from weft.data.processor import Processor
from weft.data.templates import TEMPLATES, Template
from weft.data.tokenizers import Tokenizer

SIDE = 28
PICTURE = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
CHAT_TEMPLATES = [name for name, template in TEMPLATES.items() if not template.caption]
KINDS = ("byte-level", "Llama", "legacy Llama")


@cache
def tokenizer(kind: str) -> Tokenizer:
    if kind == "byte-level":
        return byte_level()
    with TemporaryDirectory() as name:
        folder = Path(name)
        if kind == "legacy Llama":
            return Tokenizer.from_file(legacy_llama(folder)).with_special(["<image>"])
        write_llama(folder)
        plain = Tokenizer.from_file(folder)
        return plain if kind == "Llama without <image>" else plain.with_special(["<image>"])


@cache
def processor(template: str, kind: str = "byte-level") -> Processor:
    return Processor.Config(template=template, transforms={"image": ImageTransform(size=SIDE)}).build(
        tokenizer(kind), FourPositions()
    )


def learned(processor: Processor, conversation: Conversation) -> str:
    """The words that a conversation teaches, special tokens spelled out."""
    sample = processor.encode(conversation)
    positions = (sample.targets != IGNORE).nonzero()[0]
    assert not sample.modality[positions + 1].any(), "a media position is a target"
    assert (sample.targets[positions] == sample.tokens[positions + 1]).all(), "targets are the next tokens"
    return processor.tokenizer.decode(sample.targets[positions], skip_special=False)


def sayable(text: str) -> bool:
    """No token's own spelling, and not the sign that SentencePiece writes for a space."""
    return not any(token in text for token in (*SPECIAL, "▁", "<unk>"))


characters = st.characters(exclude_categories=("Cs",))  # lone surrogates are no text
words = st.one_of(st.sampled_from(MULTILINGUAL), st.text(characters, max_size=20)).filter(sayable)
answers = words.map(str.strip).filter(bool)
turns = st.lists(st.tuples(words, answers, st.booleans()), min_size=1, max_size=3)


def conversation(turns: list[tuple[str, str, bool]], picture: bool = True) -> Conversation:
    messages = []
    for number, (question, answer, train) in enumerate(turns):
        opening = (Media(PICTURE),) if picture and number == 0 else ()
        messages += [user(*opening, question), assistant(answer, train=train)]
    return Conversation(tuple(messages), id="7", source="test")


def taught(form: Template, turns: list[tuple[str, str, bool]]) -> str:
    """What a template says is learned of a conversation."""
    words = [form.answer_lead + answer + form.answer_end for _, answer, _ in turns]
    if not form.learned_opening:
        last = form.end if turns[-1][2] else ""
        return "".join(word for word, (_, _, train) in zip(words, turns, strict=True) if train) + last
    if not any(train for _, _, train in turns):
        return ""
    opening, turn = form.learned_opening, form.user_footer + form.between
    said = [word if train else form.answer_end for word, (_, _, train) in zip(words, turns, strict=True)]
    dialogue = form.between.join(f"{opening}{turn}{opening}{word}" for word in said)
    return f"{opening}{form.system_footer}{form.between}{dialogue}{form.end}"


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(turns=turns, picture=st.booleans())
def test_exactly_the_trained_answers_and_their_ends_are_learned(template, turns, picture):
    assert learned(processor(template), conversation(turns, picture)) == taught(TEMPLATES[template], turns)


@pytest.mark.parametrize("kind", ["Llama", "legacy Llama"])
@pytest.mark.parametrize("template", ["plain", "vicuna_v1"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(turns=turns)
def test_the_same_with_sentencepiece(template, kind, turns):
    form = TEMPLATES[template]
    expected = "".join(form.answer_lead + answer + form.answer_end for _, answer, train in turns if train)
    # the decoder of these tokenizers takes one leading space off a text
    assert learned(processor(template, kind), conversation(turns)) == expected.removeprefix(" ")


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(answer=words.filter(bool))
def test_spaces_around_an_answer_are_learned_with_it(template, answer):
    form = TEMPLATES[template]
    expected = form.answer_lead + answer + form.answer_end + form.end
    found = learned(processor(template), conversation([("q", answer, True)]))
    assert found.endswith(expected)
    before = found.removesuffix(expected)
    frames = "" if form.learned_opening == "" else taught(form, [("q", answer, True)]).removesuffix(expected)
    assert before.removeprefix(frames).strip() == "", "only white space of the header may share a token with an answer"


@cache
def reference(kind: str):
    transformers = pytest.importorskip("transformers")
    with TemporaryDirectory() as name:
        path = tokenizer(kind).save(name)
        theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return transformers.LlavaProcessor(
        images, theirs, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(turns=turns, reply=st.booleans())
def test_token_ids_equal_those_of_the_reference_processor(kind, turns, reply):
    spoken = conversation(turns)
    if reply:
        spoken = Conversation(spoken.messages[:-1])
    sample = processor("vicuna_v1", kind).encode(spoken, reply=reply)
    theirs = reference(kind)(images=Image.fromarray(PICTURE), text=sample.text)["input_ids"][0]
    assert sample.tokens.tolist() == list(theirs)
    (medium,) = sample.media["image"]
    ((offset, start, length),) = medium.spans
    assert (offset, length) == (0, NUM_POSITIONS)
    assert sample.modality.nonzero()[0].tolist() == list(range(start, start + length))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(turns=turns)
def test_without_an_image_token_the_text_is_cut_at_images_as_the_first_llava_did(turns):
    plain = tokenizer("Llama without <image>")
    spoken = conversation(turns)
    sample = processor("vicuna_v1", "Llama without <image>").encode(spoken)
    before, after = processor("vicuna_v1").encode(spoken).text.split("<image>")
    assert sample.text == before + after
    expected = [*plain.begin, *plain.encode(before), *[0] * NUM_POSITIONS, *plain.encode(after)]
    assert sample.tokens.tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_targets_as_answer_tokens_and_one_end_a_round(kind):
    said = [text.strip() for text in MULTILINGUAL if text.strip() and sayable(text.strip())]
    ready = processor("vicuna_v1", kind)
    for first, second in zip(said, reversed(said), strict=True):
        sample = ready.encode(conversation([("Q", first, True), ("R", second, True)]))
        # alone, a Llama tokenizer puts the space in front itself; a byte-level one is given it
        space = " " if kind == "byte-level" else ""
        expected = sum(len(ready.tokenizer.encode(space + answer)) + 1 for answer in (first, second))
        assert (sample.targets != IGNORE).sum() == expected, (first, second)


def test_a_tokenizer_folder_that_transformers_wrote_gives_its_own_ids(tmp_path):
    transformers = pytest.importorskip("transformers")
    write_llama(tmp_path)
    theirs = transformers.LlamaTokenizer.from_pretrained(tmp_path)
    theirs.add_tokens(["<image>"], special_tokens=True)
    theirs.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "tokenizer.model").unlink(missing_ok=True)
    ours = Processor.Config(template="vicuna_v1", transforms={"image": ImageTransform(size=SIDE)}).build(
        Tokenizer.from_file(tmp_path / "saved"), FourPositions()
    )
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    for words in filter(sayable, MULTILINGUAL):
        sample = ours.encode(conversation([(words, "A " + words, True), (words, "B", True)]))
        text = sample.text.replace("<image>", "<image>" * NUM_POSITIONS)
        assert sample.tokens.tolist() == read(text).input_ids, words
