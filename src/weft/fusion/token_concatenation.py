"""Media tokens stand in the text's sequence: LLaVA and most that came after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from weft.core.errors import MediaTokenMismatch
from weft.core.interfaces import Fusion, LanguageModel
from weft.core.media import MediaTokens
from weft.core.sequence import TokenSequence


class TokenConcatenation(Fusion):
    """Write each medium's tokens over the positions that the processor reserved for it.

    Shapes: embeddings [B, T, D] with spans [S, 5] -> [B, T, D]. Adds no parameter to the language model.
    Source: LLaVA, arXiv:2304.08485.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Fusion.Config):
        """`shared_positions`: the tokens of a medium but its first and last stand at one position, as in CogVLM."""

        shared_positions: bool = False

        @property
        def shares_positions(self) -> bool:
            return self.shared_positions

        def build(self) -> TokenConcatenation:
            return TokenConcatenation(self)

        def num_positions(self, num_tokens: int) -> int:
            return num_tokens

        @classmethod
        def tiny(cls) -> Self:
            return cls()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def install(self, language_model: LanguageModel) -> None:
        """Nothing to change: the tokens are ordinary tokens to the language model."""

    def fuse(self, sequence: TokenSequence, media: Mapping[str, MediaTokens]) -> TokenSequence:
        embeddings = sequence.embeddings
        batch, tokens, width = embeddings.shape
        for stream in self.config.streams:
            if stream not in media:
                continue
            items = media[stream]
            source, target = span_indices(items, tokens)
            check_spans(stream, items, source, tokens)
            values = items.values[source].to(embeddings.dtype)
            embeddings = embeddings.flatten(0, 1).index_copy(0, target, values).view(batch, tokens, width)
        return replace(sequence, embeddings=embeddings)


def span_indices(items: MediaTokens, tokens: int) -> tuple[Tensor, Tensor]:
    """Where media tokens come from and go to: indices into the flat media tokens and into the flat [B * T] text."""
    assert items.spans is not None
    spans = items.spans
    first = torch.searchsorted(items.item.contiguous(), spans[:, 0].contiguous())
    length = spans[:, 4]
    span = torch.repeat_interleave(torch.arange(len(spans), device=spans.device), length)
    inside = torch.arange(len(span), device=spans.device) - (length.cumsum(0) - length)[span]
    return (first + spans[:, 1])[span] + inside, (spans[:, 2] * tokens + spans[:, 3])[span] + inside


def check_spans(stream: str, items: MediaTokens, source: Tensor, tokens: int) -> None:
    """That spans lie in their rows and in their items, and that every media token has a place.

    `source` is what `span_indices` gives for rows of `tokens` tokens.

    Raises: MediaTokenMismatch with the first medium that fails, its row, and both counts.
    """
    assert items.spans is not None
    item, offset, row, start, length = items.spans.unbind(1)
    ids = items.item.contiguous()
    held = torch.searchsorted(ids, item.contiguous(), right=True) - torch.searchsorted(ids, item.contiguous())
    wrong = (offset + length > held) | (start + length > tokens)
    placed = torch.zeros_like(ids, dtype=torch.bool).index_fill(0, source.clamp(max=max(len(ids) - 1, 0)), True)
    if not bool(wrong.any() | ~placed.all()):  # one answer from the device in the usual case
        return
    way_out = "build processor and system from one config"
    if bool((past := start + length > tokens).any()):
        first = int(past.nonzero()[0])
        end = int(start[first] + length[first])
        raise MediaTokenMismatch(
            f"stream {stream!r}: the batch puts medium {int(item[first])} up to position {end} of row {int(row[first])}, "
            f"which has {tokens} tokens; {way_out}"
        )
    medium = int(item[wrong][0] if bool(wrong.any()) else ids[~placed][0])
    rows = sorted(set(row[item == medium].tolist()))
    place = f"row {', '.join(map(str, rows))}" if rows else "in no row"
    reserved, held_by_it = int(length[item == medium].sum()), int((ids == medium).sum())
    raise MediaTokenMismatch(
        f"stream {stream!r}: the batch reserves {reserved} positions for the {held_by_it} tokens of medium {medium} ({place}); "
        f"{way_out}"
    )
