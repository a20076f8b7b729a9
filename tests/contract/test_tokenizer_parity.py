"""Token ids equal those of `transformers` for every kind of tokenizer file."""

import pytest
from tokenizer_samples import MULTILINGUAL, byte_level, legacy_llama, write_llama, write_siglip

from weft.data.tokenizers import Tokenizer

transformers = pytest.importorskip("transformers")


def differing(ours: Tokenizer, encode) -> list[str]:
    """The texts whose ids differ, with what the tokenizer puts around them."""
    return [text for text in MULTILINGUAL if [*ours.begin, *ours.encode(text), *ours.end] != encode(text)]


def test_llama_sentencepiece_files(tmp_path):
    model = write_llama(tmp_path)
    ours, theirs = Tokenizer.from_file(tmp_path), transformers.LlamaTokenizer.from_pretrained(str(tmp_path))
    assert ours.begin == (theirs.bos_token_id,)
    assert differing(ours, lambda text: theirs(text).input_ids) == []
    assert [ours.decode(ours.encode(text)) for text in MULTILINGUAL] == [
        theirs.decode(theirs(text).input_ids, skip_special_tokens=True) for text in MULTILINGUAL
    ]
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    # `transformers` 5 adds no second space before a leading one, SentencePiece itself does: other texts agree with it too
    plain = [text for text in MULTILINGUAL if text and text[0] not in " ▁"]
    assert [ours.encode(text) for text in plain] == [processor.encode(text) for text in plain]


def test_older_llama_files_put_a_space_after_every_special_token(tmp_path):
    write_llama(tmp_path, legacy=True)
    ours, theirs = Tokenizer.from_file(tmp_path), transformers.LlamaTokenizer.from_pretrained(str(tmp_path))
    assert differing(ours, lambda text: theirs(text).input_ids) == []
    assert ours.encode("a</s>b") == theirs("a</s>b", add_special_tokens=False).input_ids
    assert ours.token_of(ours.encode("a</s>b")[-1]).startswith("▁")


def test_siglip_sentencepiece_files(tmp_path):
    write_siglip(tmp_path)
    ours = Tokenizer.from_file(tmp_path)
    theirs = transformers.SiglipTokenizer(str(tmp_path / "spiece.model"))
    assert differing(ours, lambda text: theirs(text).input_ids) == []


@pytest.mark.parametrize("kind", ["byte-level", "legacy Llama"])
def test_tokenizer_json(kind, tmp_path):
    path = byte_level().save(tmp_path) if kind == "byte-level" else legacy_llama(tmp_path)
    ours, theirs = Tokenizer.from_file(path), transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
    assert differing(ours, lambda text: theirs(text).input_ids) == []


def test_a_converted_tokenizer_survives_its_own_file(tmp_path):
    write_llama(tmp_path)
    converted = Tokenizer.from_file(tmp_path)
    saved = Tokenizer.from_file(converted.save(tmp_path / "model"))
    assert (saved.begin, saved.end, saved.special) == (converted.begin, converted.end, converted.special)
    assert differing(saved, lambda text: [*converted.begin, *converted.encode(text)]) == []
