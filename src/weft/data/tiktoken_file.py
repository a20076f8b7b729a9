"""Vocabularies in tiktoken's format, a token in base64 and its rank a line, turned into a `tokenizers` object.

The file holds neither the rule that cuts a text into pieces nor the special tokens; published models keep both in code, so they
stand here by the name of the file.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from weft.core.errors import DataError


@dataclass(frozen=True)
class Convention:
    """What a family's code adds to its file: the rule that cuts texts, the special tokens behind the ranks in order, and those
    that follow in its models with pictures. Texts are normalised to NFC."""

    pieces: str
    special: tuple[str, ...]
    with_pictures: tuple[str, ...] = ()


CONVENTIONS = {
    "qwen.tiktoken": Convention(  # Qwen 1, arXiv:2309.16609, and Qwen-VL, arXiv:2308.12966
        pieces=r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))),
        with_pictures=("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"),
    ),
}


def read_tiktoken(path: Path) -> tokenizers.Tokenizer:
    """A tiktoken file as a `tokenizers` object with the ids of the published tokenizer.

    A `config.json` beside it says by `visual` whether the model sees pictures and has their tokens too.

    Raises: DataError where the file is none, or of a family whose rule and special tokens are not known.
    """
    if path.name not in CONVENTIONS:
        raise DataError(
            f"{path}: a tiktoken file does not say how texts are cut nor which tokens are special; known are those of "
            f"{', '.join(CONVENTIONS)}"
        )
    convention, ranks = CONVENTIONS[path.name], _ranks(path)
    letters = _letters()
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    backend = tokenizers.Tokenizer(
        models.BPE({spelled[token]: rank for token, rank in ranks.items()}, _merges(ranks, spelled), ignore_merges=True)
    )
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(convention.pieces), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    special = convention.special + (convention.with_pictures if _sees(path.with_name("config.json")) else ())
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return backend


def _ranks(path: Path) -> dict[bytes, int]:
    try:
        lines = [line.split() for line in path.read_bytes().splitlines() if line]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except (ValueError, binascii.Error):
        raise DataError(f"{path} is no tiktoken file: each line holds a token in base64 and its rank") from None
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing or sorted(ranks.values()) != list(range(len(ranks))):
        raise DataError(
            f"{path} is no whole tiktoken file: {256 - len(missing)} of 256 bytes and {len(ranks)} tokens, whose ranks must "
            "count from 0 without a gap; download it again"
        )
    return ranks


def _merges(ranks: dict[bytes, int], spelled: dict[bytes, str]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, in the order of what is made: tiktoken joins the pair of the lowest rank."""
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        pairs = [pair for pair in cuts if pair[0] in ranks and pair[1] in ranks]
        merges += sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return [(spelled[left], spelled[right]) for left, right in merges]


def _letters() -> dict[int, str]:
    """The letter that stands for each byte in byte-level vocabularies: itself where it is printable, else one from 256 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)}


def _sees(config: Path) -> bool:
    return config.is_file() and "visual" in json.loads(config.read_text(encoding="utf-8"))
