"""Tokenizers of every kind that Weft reads, tiny and trained here, and the system that the processor is built for."""

import io
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from weft.core.interfaces import System
from weft.core.layout import MediaLayout
from weft.data.tokenizers import Tokenizer

LINES = (
    "Hello world, how are you today?",
    "The quick brown fox jumps over the lazy dog.",
    "A chat between a curious user and an artificial intelligence assistant.",
    "USER: What is in the image? ASSISTANT: A red cat on a mat.",
    "Bonjour le monde, ça va très bien!",
    "Привет, мир! Как дела?",
    "你好，世界！今天天气很好。",
    "こんにちは世界、元気ですか",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "안녕하세요 세계",
    "emoji 😀🎉 here, e\u0301 combining a\u0308 marks, numbers 12 345 6,789",
)
MULTILINGUAL = (
    "", "a", " leading", "  two", "trail ", "Hello\nworld", "\n", "\n\nx", "😀",
    "\U0001f469\u200d\U0001f467 family", "e\u0301te\u0301", "你好 world", "  \t tab", "नमस्ते", "ﬁ ligature ① ½",
    "مرحبا  بالعالم", "a\u00a0b\u3000c", "▁under", "\u200bzero", "Ünïcödé ÀÉ", "don't stop-it! (really)?",
    "  mixed   spaces  here ", "İstanbul ẞ", "<not special>", "1,234.5",
)  # fmt: skip
SPECIAL = (
    "<pad>", "<s>", "</s>", "<image>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<|user|>", "<|assistant|>", "<|end|>", "<|begin_of_text|>", "<|end_of_text|>",
    "<|endofchunk|>", "<end_of_utterance>", "<fake_token_around_image>", "<|endoftext|>",
)  # fmt: skip
NUM_POSITIONS = 4


@dataclass(frozen=True, kw_only=True)
class FourPositions(System.Config):
    """Stands for a system in which every medium takes four positions."""

    def build(self) -> System:
        raise AssertionError("the processor needs a system's config, never the system")

    def num_positions(self, stream: str, layout: MediaLayout | None = None) -> int:
        return NUM_POSITIONS

    def layout(self, stream: str) -> MediaLayout:
        return MediaLayout(2, 2)

    @property
    def context(self) -> int:
        return 64


@cache
def byte_level(special: tuple[str, ...] = SPECIAL) -> Tokenizer:
    """Weft's own training."""
    return Tokenizer.train(LINES * 5, 420, special)


def train_sentencepiece(folder: Path, file: str, **options: object) -> bytes:
    """Train a SentencePiece model on `LINES` and write it."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 20), model_writer=model, minloglevel=3, hard_vocab_limit=False, **options
    )
    (folder / file).write_bytes(model.getvalue())
    return model.getvalue()


def write_llama(folder: Path, legacy: bool = False) -> bytes:
    """A `tokenizer.model` made with Llama's own settings, and the `tokenizer_config.json` that comes with it."""
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": legacy})
    )
    return train_sentencepiece(
        folder, "tokenizer.model", model_type="bpe", vocab_size=600, byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, split_digits=True, character_coverage=0.995,
    )  # fmt: skip


def write_siglip(folder: Path) -> bytes:
    """A `spiece.model` with the ids of SigLIP's: padding, end of text, unknown."""
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "SiglipTokenizer"}))
    return train_sentencepiece(
        folder, "spiece.model", model_type="unigram", vocab_size=300, bos_id=-1, pad_id=0, eos_id=1, unk_id=2
    )


def write_t5(folder: Path) -> bytes:
    """A `spiece.model` with the ids of T5's: padding, end of text, unknown."""
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))
    return train_sentencepiece(
        folder, "spiece.model", model_type="unigram", vocab_size=300, bos_id=-1, pad_id=0, eos_id=1, unk_id=2
    )


def legacy_llama(folder: Path) -> Path:
    """The older layout of Llama's `tokenizer.json`: spaces are put in front of every stretch by a normaliser."""
    from tokenizers import decoders, normalizers

    write_llama(folder)
    backend = Tokenizer.from_file(folder / "tokenizer.model").backend
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    backend.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"
