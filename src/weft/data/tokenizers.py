"""Text to token ids and back: trained, read from `tokenizer.json`, or converted from a SentencePiece model or tiktoken file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from weft.core.errors import DataError, unknown_name

_ONE_DIGIT = tokenizers.Regex(r" ?\d")
_END_NAMES = ("</s>", "<|endoftext|>", "<|end_of_text|>", "[SEP]")
_PAD_NAMES = ("<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>")
_PHRASE = 64  # characters up to which texts are worth remembering: captions and answers come again and again
INSTRUCTIONS = "qformer_tokenizer"  # the folder of InstructBLIP's second tokenizer, as `transformers` names it


class EncodedText(NamedTuple):
    """Token ids of a text, and of each the characters that it stands for: `start` inclusive, `end` exclusive, never falling."""

    ids: list[int]
    start: np.ndarray
    end: np.ndarray


class Tokenizer:
    """Text to token ids and back.

    `encode` adds nothing of its own: what a published tokenizer puts around a text is in `begin` and `end`.
    Added tokens (`special`) are found in any text, as the published tokenizers do. `instructions` is the tokenizer of a
    projector that reads what is asked in a vocabulary of its own, as InstructBLIP's Q-Former does; it travels along.
    """

    def __init__(self, backend: tokenizers.Tokenizer, instructions: Tokenizer | None = None) -> None:
        self.instructions = instructions
        self._saved = backend.to_str()
        self._backend = tokenizers.Tokenizer.from_str(self._saved)
        self._backend.no_truncation()
        self._backend.no_padding()
        self.begin, self.end = _wrapping(self._backend)
        # without a post-processor offsets are whole: ByteLevel's would cut the space off "Ġword"
        self._backend.post_processor = None
        self._ids_of_phrase = lru_cache(maxsize=8192)(self._ids)
        self.special: dict[str, int] = {t.content: i for i, t in self._backend.get_added_tokens_decoder().items()}
        self.silent = frozenset(i for i, t in self._backend.get_added_tokens_decoder().items() if t.special)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a `tokenizer.json`, a SentencePiece `tokenizer.model`, a `qwen.tiktoken`, or a folder that holds one of them.

        Of several the first wins. A folder may hold the tokenizer of instructions in `qformer_tokenizer/`.

        A `tokenizer.json` is taken at its word, as `PreTrainedTokenizerFast` does; `LlamaTokenizer` of `transformers` 5 puts
        its own rule for leading spaces in place of an older file's.

        Raises: DataError where there is none or it cannot be read.
        """
        path = Path(path)
        beside = path / INSTRUCTIONS
        return cls(_read_backend(path), Tokenizer.from_file(beside) if beside.is_dir() else None)

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int, special: Sequence[str] = (), begin: str | None = None) -> Self:
        """Train a byte-level BPE of at most `vocabulary` tokens, `special` included and first; a digit has a token of its own.

        `begin` is the special token put before every text; by default the first of `<s>`, `<|begin_of_text|>` in `special`.

        Raises: DataError where the vocabulary has no room for the 256 bytes.
        """
        if vocabulary < 256 + len(special):
            raise DataError(f"a byte-level vocabulary needs 256 tokens and {len(special)} special ones, got {vocabulary}")
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(_ONE_DIGIT, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        backend.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        backend.train_from_iterator(
            texts,
            trainers.BpeTrainer(
                vocab_size=vocabulary, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
            ),
        )
        if begin is None:
            begin = next((t for t in ("<s>", "<|begin_of_text|>") if t in special), None)
        if begin is not None:
            if begin not in special:
                raise unknown_name("special token", begin, special)
            backend.post_processor = processors.TemplateProcessing(
                single=f"{begin} $A", special_tokens=[(begin, backend.token_to_id(begin))]
            )
        return cls(backend)

    def with_special(self, tokens: Sequence[str]) -> Tokenizer:
        """A tokenizer that also knows these special tokens; new ones get the ids after the last."""
        backend = tokenizers.Tokenizer.from_str(self._saved)
        backend.add_special_tokens(list(tokens))
        return Tokenizer(backend, self.instructions)

    def with_instructions(self, instructions: Tokenizer | None) -> Tokenizer:
        """The same tokenizer with another, or none, for instructions."""
        return self if instructions is self.instructions else Tokenizer(self.backend, instructions)

    def save(self, folder: str | Path) -> Path:
        """Write `tokenizer.json` into a folder, that of instructions into `qformer_tokenizer/`; returns the first file."""
        path = Path(folder) / "tokenizer.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(json.loads(self._saved), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        if self.instructions is not None:
            self.instructions.save(Path(folder) / INSTRUCTIONS)
        return path

    def encode(self, text: str) -> list[int]:
        """The ids of a text, nothing added."""
        return list(self._ids_of_phrase(text) if len(text) <= _PHRASE else self._ids(text))

    def _ids(self, text: str) -> Sequence[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_with_offsets(self, text: str) -> EncodedText:
        """The ids of a text and the characters of each."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        return _with_offsets(encoding.ids, encoding.offsets)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of ids; special tokens are left out unless asked for."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def id_of(self, token: str) -> int | None:
        """The id of a token, None where there is none."""
        return self._backend.token_to_id(token)

    def token_of(self, id: int) -> str | None:
        """The token of an id in the vocabulary's spelling, None where there is none."""
        return self._backend.id_to_token(id)

    @cached_property
    def vocabulary(self) -> int:
        """Rows that an embedding needs: one more than the largest id."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def begin_id(self) -> int | None:
        """What the tokenizer puts before a text."""
        return self.begin[0] if self.begin else None

    @cached_property
    def end_id(self) -> int | None:
        """What ends a text: what the tokenizer puts after it, else the conventional end token that it knows."""
        if self.end:
            return self.end[-1]
        return next((self.special[name] for name in _END_NAMES if name in self.special), None)

    @cached_property
    def pad_id(self) -> int:
        """A padding token, else the end of a text, else 0."""
        named = next((self.special[name] for name in _PAD_NAMES if name in self.special), None)
        if named is not None:
            return named
        return self.end_id if self.end_id is not None else 0

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """A copy of the `tokenizers` object as it was read, post-processor included."""
        return tokenizers.Tokenizer.from_str(self._saved)

    def __getstate__(self) -> dict[str, Any]:
        return {"saved": self._saved, "instructions": self.instructions}

    def __setstate__(self, state: dict[str, Any]) -> None:
        backend = tokenizers.Tokenizer.from_str(state["saved"])
        self.__init__(backend, state["instructions"])  # type: ignore[misc]


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    """The `tokenizers` object of a file, or of the first file that a folder holds."""
    if path.is_dir():
        names = ("tokenizer.json", "tokenizer.model", "spiece.model", "qwen.tiktoken")
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise DataError(f"{path} holds no tokenizer; expected one of {', '.join(names)}")
        path = found[0]
    if not path.is_file():
        raise DataError(f"no tokenizer file {path}")
    if path.suffix in (".model", ".spm"):
        from weft.data.sentencepiece_model import read_sentencepiece

        return read_sentencepiece(path)
    if path.suffix == ".tiktoken":
        from weft.data.tiktoken_file import read_tiktoken

        return read_tiktoken(path)
    try:
        return tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises plain Exception for every defect
        raise DataError(f"{path} is no tokenizer.json: {str(error).splitlines()[0]}") from None


def _with_offsets(ids: list[int], offsets: list[tuple[int, int]]) -> EncodedText:
    spans = np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(offsets)).reshape(-1, 2)
    end = np.maximum.accumulate(spans[:, 1])
    return EncodedText(ids, np.minimum(np.maximum.accumulate(spans[:, 0]), end), end)


def _wrapping(backend: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the post-processor puts before and after a text."""
    encoding = backend.encode("a")
    inside = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
    if not inside:
        return (), ()
    return tuple(encoding.ids[: inside[0]]), tuple(encoding.ids[inside[-1] + 1 :])
