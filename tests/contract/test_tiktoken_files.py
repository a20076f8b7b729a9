"""Qwen's tiktoken files: ids equal those of byte pair encoding as tiktoken defines it, written here by its definition."""

import base64
import json
import unicodedata
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_samples import LINES, MULTILINGUAL

from weft.core.errors import DataError
from weft.data.tiktoken_file import CONVENTIONS
from weft.data.tokenizers import Tokenizer

regex = pytest.importorskip("regex")

PIECES = regex.compile(
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
NUM_MERGES = 240


@cache
def ranks() -> dict[bytes, int]:
    """A vocabulary trained here: the bytes, then again and again the most frequent pair."""
    words = [[bytes([b]) for b in piece.encode()] for line in LINES for piece in PIECES.findall(line)]
    found = {bytes([b]): rank for rank, b in enumerate([*range(33, 127), *range(33), *range(127, 256)])}
    for _ in range(NUM_MERGES):
        pairs = Counter(pair for word in words for pair in pairwise(word) if b"".join(pair) not in found)
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        found[b"".join(best)] = len(found)
        words = [[*joined(word, found)] for word in words]
    return found


def joined(parts: list[bytes], ranks: dict[bytes, int]) -> list[bytes]:
    """Join the neighbours that make the token of the lowest rank, the leftmost first, until none make one."""
    while True:
        candidates = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not candidates:
            return parts
        _, at = min(candidates)
        parts = [*parts[:at], parts[at] + parts[at + 1], *parts[at + 2 :]]


def reference(text: str, special: dict[str, int]) -> list[int]:
    ids: list[int] = []
    names = regex.compile("(" + "|".join(map(regex.escape, special)) + ")")
    for stretch in names.split(unicodedata.normalize("NFC", text)):
        if stretch in special:
            ids.append(special[stretch])
            continue
        for piece in PIECES.findall(stretch):
            whole = ranks().get(piece.encode())
            parts = joined([bytes([b]) for b in piece.encode()], ranks())
            ids += [whole] if whole is not None else [ranks()[part] for part in parts]
    return ids


def write(folder: Path, sees: bool = False) -> Tokenizer:
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in ranks().items()]
    (folder / "qwen.tiktoken").write_text("\n".join(lines) + "\n")
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen", **({"visual": {}} if sees else {})}))
    return Tokenizer.from_file(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write(tmp_path_factory.mktemp("qwen"))


def special_of(tokens) -> dict[str, int]:
    return {token: len(ranks()) + place for place, token in enumerate(tokens)}


QWEN = special_of(CONVENTIONS["qwen.tiktoken"].special)


def test_ids_equal_the_definition_s(tokenizer):
    texts = [*MULTILINGUAL, *LINES, "I'LL say: it's 12345!\r\n\n  x", "<|im_start|>user\nHi<|im_end|>\n<|extra_204|>"]
    assert [text for text in texts if tokenizer.encode(text) != reference(text, QWEN)] == []
    assert any(len(reference(text, QWEN)) < len(text.encode()) // 2 for text in LINES), "merges matter"
    assert [tokenizer.decode(tokenizer.encode(text), skip_special=False) for text in texts] == [
        unicodedata.normalize("NFC", text) for text in texts
    ]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=st.text(st.sampled_from("ae lotHh12 \n'!世界") | st.characters(exclude_categories=("Cs",)), max_size=30))
def test_any_text_has_the_definition_s_ids(tokenizer, text):
    assert tokenizer.encode(text) == reference(text, QWEN)


def test_special_tokens_have_the_published_places(tokenizer):
    """151,643 ranks in the published file: <|endoftext|> 151643, <|im_start|> 151644, <img> 151857."""
    assert tokenizer.special == QWEN
    offset = 151_643 - len(ranks())
    published = {"<|endoftext|>": 151_643, "<|im_start|>": 151_644, "<|im_end|>": 151_645, "<|extra_0|>": 151_646}
    assert {name: tokenizer.special[name] + offset for name in published} == published
    assert (tokenizer.vocabulary + offset, tokenizer.begin, tokenizer.end) == (151_851, (), ())
    assert tokenizer.end_id == tokenizer.pad_id == tokenizer.special["<|endoftext|>"]


def test_a_model_that_sees_has_the_tokens_of_pictures_behind_them(tmp_path):
    seeing = write(tmp_path, sees=True)
    assert seeing.special == special_of((*CONVENTIONS["qwen.tiktoken"].special, *CONVENTIONS["qwen.tiktoken"].with_pictures))
    assert seeing.special["<img>"] + 151_643 - len(ranks()) == 151_857
    text = "<img>a.png</img><ref>the cat</ref><box>(1,2),(3,4)</box>"
    assert seeing.encode(text) == reference(text, seeing.special)


def test_it_survives_its_own_file(tokenizer, tmp_path):
    again = Tokenizer.from_file(tokenizer.save(tmp_path))
    assert [again.encode(text) for text in MULTILINGUAL] == [tokenizer.encode(text) for text in MULTILINGUAL]
    assert again.special == tokenizer.special


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("other.tiktoken", "", r"does not say how texts are cut .* known are those of qwen\.tiktoken"),
        ("qwen.tiktoken", "no base64 !\n", "each line holds a token in base64 and its rank"),
        ("qwen.tiktoken", "IQ== 0\nIg== 1\n", "2 of 256 bytes and 2 tokens"),
    ],
)
def test_files_that_are_none_are_refused_by_name(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        Tokenizer.from_file(path)
