"""Captions for dual encoders carry the ids that `transformers` gives, cut and filled alike."""

import json
from pathlib import Path

import pytest
from tokenizer_samples import LINES, MULTILINGUAL, FourPositions, write_siglip
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from weft.core.conversation import Conversation, user
from weft.data.processor import Processor
from weft.data.tokenizers import Tokenizer

transformers = pytest.importorskip("transformers")

CONTEXT = FourPositions().context
CAPTIONS = [text for text in (*MULTILINGUAL, *LINES, "many words " * 60) if text.strip()]


def ids(template: str, tokenizer: Tokenizer) -> list[list[int]]:
    processor = Processor.Config(template=template).build(tokenizer, FourPositions())
    return [processor.encode(Conversation((user(text),))).tokens.tolist() for text in CAPTIONS]


def write_clip(folder: Path) -> None:
    """A `tokenizer.json` as `transformers` writes CLIP's, around a small vocabulary trained here."""
    backend = Backend(models.BPE(end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        [line.lower() for line in LINES * 5],
        trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False),
    )
    model = json.loads(backend.to_str())["model"]
    vocabulary = model["vocab"]
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[token] = len(vocabulary)
    merges = [tuple(pair) for pair in model["merges"]]
    transformers.CLIPTokenizer(vocab=vocabulary, merges=merges).save_pretrained(folder)


def test_clip_captions(tmp_path):
    write_clip(tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    expected = [theirs(text, truncation=True, max_length=CONTEXT).input_ids for text in CAPTIONS]
    assert len(expected[-1]) == CONTEXT, "the last caption is cut"
    assert ids("clip_text", Tokenizer.from_file(tmp_path)) == expected


def test_siglip_captions(tmp_path):
    write_siglip(tmp_path)
    theirs = transformers.SiglipTokenizer(str(tmp_path / "spiece.model"))
    expected = [theirs(text, truncation=True, padding="max_length", max_length=CONTEXT).input_ids for text in CAPTIONS]
    assert ids("siglip_text", Tokenizer.from_file(tmp_path)) == expected
