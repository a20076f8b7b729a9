"""Tokenizers: trained here, saved and read again, and files that are none."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from weft.core.errors import DataError
from weft.data.sentencepiece_model import parse
from weft.data.tokenizers import Tokenizer

TEXTS = ["Which digit is red?", "a red 7, a blue 3", "12 + 30 = 42"] * 3
SPECIAL = ("<pad>", "<s>", "</s>", "<image>")
TOKENIZER = Tokenizer.train(TEXTS, 300, SPECIAL)


def test_training_keeps_its_promises():
    assert TOKENIZER.vocabulary <= 300
    assert [TOKENIZER.id_of(t) for t in SPECIAL] == [0, 1, 2, 3], "special tokens come first, in order"
    assert (TOKENIZER.begin_id, TOKENIZER.end_id, TOKENIZER.pad_id) == (1, 2, 0)
    assert TOKENIZER.begin == (1,) and TOKENIZER.end == ()
    seven, three = TOKENIZER.encode("73")
    assert (TOKENIZER.token_of(seven), TOKENIZER.token_of(three)) == ("7", "3"), "digits stand alone"


def test_training_is_the_same_every_time():
    again = Tokenizer.train(TEXTS, 300, SPECIAL)
    assert again.backend.to_str() == TOKENIZER.backend.to_str()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
def test_any_text_comes_back(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text), skip_special=False) == text


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40))
def test_every_character_belongs_to_a_token(text):
    encoded = TOKENIZER.encode_with_offsets(text)
    assert encoded.ids == TOKENIZER.encode(text)
    assert (encoded.start[1:] >= encoded.start[:-1]).all() and (encoded.end[1:] >= encoded.end[:-1]).all()
    owned = {c for start, end in zip(encoded.start, encoded.end, strict=True) for c in range(start, end)}
    assert owned == set(range(len(text)))


def test_special_tokens_are_found_in_text_and_left_out_of_words():
    ids = TOKENIZER.encode("a<image>b</s>")
    assert ids.count(3) == 1 and ids[-1] == 2
    assert TOKENIZER.decode(ids) == "ab"
    assert TOKENIZER.decode(ids, skip_special=False) == "a<image>b</s>"


def test_new_special_tokens_follow_the_vocabulary():
    grown = TOKENIZER.with_special(["<new>", "<image>"])
    assert grown.special["<new>"] == TOKENIZER.vocabulary == grown.vocabulary - 1
    assert grown.special["<image>"] == 3
    assert "<new>" not in TOKENIZER.special


def test_a_saved_tokenizer_is_the_same(tmp_path):
    path = TOKENIZER.save(tmp_path / "model")
    assert path.name == "tokenizer.json"
    for read in (Tokenizer.from_file(path), Tokenizer.from_file(path.parent), copy.deepcopy(TOKENIZER)):
        assert read.encode("Which digit is 7? 你好") == TOKENIZER.encode("Which digit is 7? 你好")
        assert (read.begin, read.special, read.vocabulary) == (TOKENIZER.begin, TOKENIZER.special, TOKENIZER.vocabulary)


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(DataError, match="needs 256 tokens and 4 special ones, got 259"):
        Tokenizer.train(TEXTS, 259, SPECIAL)


def test_files_that_are_no_tokenizer_are_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"holds no tokenizer; expected one of tokenizer\.json"):
        Tokenizer.from_file(tmp_path)
    with pytest.raises(DataError, match=r"no tokenizer file .*gone"):
        Tokenizer.from_file(tmp_path / "gone.json")
    for content in ("", "{}", "not json", '{"model": 3}'):
        path = tmp_path / "tokenizer.json"
        path.write_text(content)
        with pytest.raises(DataError, match=r"tokenizer\.json is no tokenizer\.json"):
            Tokenizer.from_file(path)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x0a\xff", b"\x0a\x05\x0a\x03abc", bytes(range(256))], ids=str)
def test_files_that_are_no_sentencepiece_model_are_refused_by_name(content, tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.model"):
        Tokenizer.from_file(path)


def test_the_fields_of_a_sentencepiece_model():
    pytest.importorskip("sentencepiece")
    import io

    import sentencepiece

    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 5), model_writer=file, model_type="bpe", vocab_size=300, hard_vocab_limit=False,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=3,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
    ours = parse(file.getvalue())
    assert [p.text for p in ours.pieces] == [theirs.id_to_piece(i) for i in range(theirs.get_piece_size())]
    assert [p.score for p in ours.pieces] == [theirs.get_score(i) for i in range(theirs.get_piece_size())]
    assert (ours.begin, ours.end, ours.unknown) == (theirs.bos_id(), theirs.eos_id(), theirs.unk_id())
    assert (ours.algorithm, ours.byte_fallback, ours.charsmap, ours.dummy_prefix, ours.squeeze_spaces) == (
        2,
        True,
        b"",
        True,
        False,
    )


def test_a_post_processor_that_trims_offsets_leaves_no_space_without_a_token():
    # Llama 3 and GPT-2 files cut the space off "Ġword", which would leave the space of an answer to no token
    backend = TOKENIZER.backend
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), backend.post_processor])
    trimming = Tokenizer(backend)
    assert trimming.begin == TOKENIZER.begin
    encoded = trimming.encode_with_offsets("digit   is  red ")
    assert encoded.start[0] == 0 and encoded.end[-1] == 16
    assert (encoded.start[1:] == encoded.end[:-1]).all()
