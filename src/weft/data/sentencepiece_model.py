"""SentencePiece model files, read without the SentencePiece library and turned into a `tokenizers` object.

Source: SentencePiece, arXiv:1808.06226; the fields are those of its `ModelProto`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from weft.core.errors import DataError

_UNIGRAM, _BPE = 1, 2
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
_SPACE = "▁"


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    """What encoding needs of a model file."""

    pieces: tuple[Piece, ...]
    algorithm: int
    unknown: int
    begin: int
    end: int
    byte_fallback: bool
    charsmap: bytes
    dummy_prefix: bool
    squeeze_spaces: bool


def read_sentencepiece(path: Path) -> tokenizers.Tokenizer:
    """A SentencePiece file as a `tokenizers` object with the ids of `transformers`.

    A `tokenizer_config.json` beside the file says what is put around a text, whether Llama's older rule
    for spaces holds (`legacy`), and whether it is SigLIP's, which lowers the case and drops
    punctuation. Without one, BPE models (Llama) begin with `<s>` and unigram models (T5) end with `</s>`.

    Raises: DataError where the file is no SentencePiece model of a known algorithm.
    """
    try:
        model = parse(path.read_bytes())
    except (IndexError, struct.error, UnicodeDecodeError, ValueError):
        raise DataError(f"{path} is no SentencePiece model, or it is damaged") from None
    named = (model.unknown, model.begin, model.end)
    if model.algorithm not in (_UNIGRAM, _BPE) or max(named) >= len(model.pieces) or model.unknown < 0:
        raise DataError(
            f"{path}: a SentencePiece model of BPE or unigram pieces is needed, got algorithm {model.algorithm} and "
            f"{len(model.pieces)} pieces"
        )
    settings = _settings(path.with_name("tokenizer_config.json"))
    backend = _bpe(model, bool(settings.get("legacy"))) if model.algorithm == _BPE else _unigram(model)
    if settings.get("tokenizer_class") == "SiglipTokenizer":
        backend.normalizer = normalizers.Sequence(
            [_siglip_normalizer(bool(settings.get("do_lower_case", True))), *_rules(model)]
        )
    for id, piece in enumerate(model.pieces):
        if piece.kind in (_UNKNOWN, _CONTROL, _USER_DEFINED) and backend.token_to_id(piece.text) == id:
            backend.add_tokens([AddedToken(piece.text, normalized=False, special=piece.kind != _USER_DEFINED)])
    begins = bool(settings.get("add_bos_token", model.algorithm == _BPE)) and model.begin >= 0
    ends = bool(settings.get("add_eos_token", model.algorithm == _UNIGRAM)) and model.end >= 0
    around = [model.pieces[i].text for i, wanted in ((model.begin, begins), (model.end, ends)) if wanted]
    if around:
        single = [*([around[0]] if begins else []), "$A", *([around[-1]] if ends else [])]
        backend.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[(token, backend.token_to_id(token)) for token in around]
        )
    return backend


def _bpe(model: SentencePieceModel, legacy: bool) -> tokenizers.Tokenizer:
    """`legacy` puts a space in front of every stretch between special tokens, as older Llama tokenizers do."""
    vocabulary = {piece.text: id for id, piece in enumerate(model.pieces)}
    merges = [
        (id, len(text[:cut]), len(text) - cut, text[:cut], text[cut:])
        for text, id in vocabulary.items()
        for cut in range(1, len(text))
        if text[:cut] in vocabulary and text[cut:] in vocabulary
    ]
    pairs = [(left, right) for _, _, _, left, right in sorted(merges)]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocabulary,
            pairs,
            unk_token=model.pieces[model.unknown].text,
            fuse_unk=True,
            byte_fallback=model.byte_fallback,
        )
    )
    if rules := _rules(model):
        backend.normalizer = normalizers.Sequence(rules)
    scheme = ("always" if legacy else "first") if model.dummy_prefix else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme=scheme, split=False)
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)] if model.dummy_prefix else steps)
    return backend


def _unigram(model: SentencePieceModel) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(
        models.Unigram(
            [(piece.text, piece.score) for piece in model.pieces], unk_id=model.unknown, byte_fallback=model.byte_fallback
        )
    )
    if rules := _rules(model):
        backend.normalizer = normalizers.Sequence(rules)
    scheme = "always" if model.dummy_prefix else "never"
    words = not any(_SPACE in piece.text[1:] for piece in model.pieces)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme=scheme, split=words)
    metaspace = decoders.Metaspace(replacement=_SPACE, prepend_scheme=scheme, split=words)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), metaspace]) if model.byte_fallback else metaspace
    return backend


def _rules(model: SentencePieceModel) -> list[Any]:
    rules: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.squeeze_spaces:
        rules += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    return rules


def _siglip_normalizer(lower_case: bool) -> Any:
    """Lower case, no ASCII punctuation, single spaces: how SigLIP's texts are cleaned before encoding."""
    rules: list[Any] = [normalizers.Lowercase()] if lower_case else []
    rules += [
        normalizers.Replace(Regex(r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""), ""),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
    ]
    return normalizers.Sequence(rules)


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise DataError(f"{path} is not JSON") from None
    return settings if isinstance(settings, dict) else {}


def parse(data: bytes) -> SentencePieceModel:
    """The message `ModelProto` of a model file."""
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(value))
            pieces.append(Piece(bytes(piece[1]).decode("utf-8"), _float(piece.get(2, b"\0\0\0\0")), piece.get(3, 1)))
        elif number == 2:
            trainer = dict(_fields(value))
        elif number == 3:
            normalizer = dict(_fields(value))
    return SentencePieceModel(
        pieces=tuple(pieces),
        algorithm=trainer.get(3, _UNIGRAM),
        unknown=_signed(trainer.get(40, 0)),
        begin=_signed(trainer.get(41, 1)),
        end=_signed(trainer.get(42, 2)),
        byte_fallback=bool(trainer.get(35, 0)),
        charsmap=bytes(normalizer.get(2, b"")),
        dummy_prefix=bool(normalizer.get(3, 1)),
        squeeze_spaces=bool(normalizer.get(4, 1)),
    )


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protocol buffer message: integers, or the bytes of everything else."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + length > len(data):
            raise ValueError("cut off")
        yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _float(data: bytes) -> float:
    return float(struct.unpack("<f", data)[0])
