"""Autoregressive generation: one prefill, then one token a row and step, with rows leaving as they finish.

The same loop serves batches, streams and chats: it yields each step's tokens, and whoever reads them turns them into text.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from weft.core.batch import MultimodalBatch, TextSide
from weft.core.errors import AttentionError, ContextTooShort
from weft.core.media import MediaFeatures
from weft.core.memory import Memory
from weft.core.sequence import TokenSequence
from weft.inference.cache import KeyValueCache
from weft.inference.sampling import Sampler, Sampling
from weft.systems.multimodal_lm import MultimodalSystem

FinishReason = Literal["stop", "length"]


class TokenEvent(NamedTuple):
    """One new token: the batch row it belongs to, its place in the answer, and whether the answer ends with it.

    A token that is a stop id is reported with `finish` "stop" and belongs to no text.
    """

    row: int
    step: int
    token: int
    finish: FinishReason | None = None


class Decoding:
    """A batch being continued: its cache and, per live row, the order, segment and position of the next token.

    Next order and position count on from the row's own last token, never from the padded length, so rows of different
    lengths share a batch with padding on the right.
    """

    def __init__(self, system: MultimodalSystem, cache: KeyValueCache | None = None, capacity: int = 256) -> None:
        self.system = system
        self.cache = cache or KeyValueCache.of(system.language_model, capacity)
        self.rows: list[int] = []  # the live rows, by their number in the batch
        self.room: list[int] = []  # positions left in the context, of every row of the batch
        self._next: Tensor | None = None  # [3, B, 1]: order, segment, position of the token to come
        self._step: Tensor | None = None
        self._modality: Tensor | None = None
        self._visible: dict[str, Tensor] = {}  # [B, 1, 2] by memory: the items that the token to come sees
        self._memory: dict[str, Any] = {}

    @torch.inference_mode()
    def prefill(self, batch: MultimodalBatch, media: Mapping[str, MediaFeatures] | None = None) -> Tensor:
        """Read the prompt, or what follows the tokens already in the cache. Returns the logits of the next token, [B, V]."""
        text = batch.written
        last = last_real_token(text)
        row = torch.arange(len(last), device=last.device)
        context = self.system.language_model.config.context
        self.room = (context - 1 - text.positions[row, last]).tolist()
        if min(self.room) < 1:
            raise ContextTooShort(
                f"row {self.room.index(min(self.room))}: the prompt takes {context - min(self.room)} positions and the "
                f"language model has {context}; shorten the conversation or lower the media's resolution"
            )
        sequence = behind_cache(self.system, batch, self.cache, media)
        hidden = self.system.language_model.last_hidden(sequence, last, self.cache)
        memories = {name: part for name, part in sequence.memory.items() if isinstance(part, Memory)}
        self._visible = {name: part.visible[row, last][:, None] for name, part in memories.items()}  # it goes on seeing these
        self._start(torch.stack((text.order[row, last] + 1, text.segment[row, last], text.positions[row, last] + 1))[..., None])
        return self.system.head(hidden)

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to each live row. Shapes: tokens [B] -> logits of the next [B, V]."""
        assert self._next is not None and self._step is not None and self._modality is not None
        model = self.system.language_model
        rule = self.cache.advance(self._next)
        sequence = TokenSequence(self.system.embed(tokens.unsqueeze(1)), self._next[2], rule, self._modality, self._memory)
        hidden, _ = model(sequence, self.cache)
        self._next = self._next + self._step
        return self.system.head(hidden.squeeze(1))

    @torch.inference_mode()
    def keep(self, places: Sequence[int]) -> None:
        """Go on with some of the live rows, by their place among them; the others stop costing anything."""
        assert self._next is not None
        self.cache.select(places)
        self._visible = {stream: sees[list(places)] for stream, sees in self._visible.items()}
        self.rows = [self.rows[place] for place in places]
        self._start(self._next[:, list(places)], self.rows)

    def _start(self, following: Tensor, rows: list[int] | None = None) -> None:
        self._next = following
        self._step = torch.tensor([1, 0, 1], device=following.device, dtype=following.dtype)[:, None, None]
        self._modality = torch.zeros_like(following[0])
        self._memory = self.cache.memory(self._visible)
        self.rows = list(range(following.shape[1])) if rows is None else rows


def read(
    system: MultimodalSystem, batch: MultimodalBatch, cache: KeyValueCache, media: Mapping[str, MediaFeatures] | None = None
) -> Tensor:
    """Run a batch behind what the cache holds and store it there. Returns the hidden states, [B, T, D]."""
    hidden, _ = system.language_model(behind_cache(system, batch, cache, media), cache)
    return hidden


def behind_cache(
    system: MultimodalSystem, batch: MultimodalBatch, cache: KeyValueCache, media: Mapping[str, MediaFeatures] | None = None
) -> TokenSequence:
    """The embedded batch under its rule against all keys, with room made for it in the cache."""
    text = batch.written
    first = cache.length == 0
    rule = cache.extend(text.rule().queries)
    if first and not cache.window and right_padded_causal(text):
        # Exact for every real token: a causal query never reaches the padding behind it. What padding computes is never read.
        rule = rule.assume(pattern="causal", everyone_sees=True)
    sequence = system.sequence(batch, media)
    return replace(sequence, rule=rule, memory=cache.extend_memory(sequence.memory))


def right_padded_causal(text: TextSide) -> bool:
    """Whether each row is one segment in ascending order with padding, if any, on the right only."""
    segment, order = text.segment, text.order
    goes_on = (segment.diff(dim=1) == 0) & (order.diff(dim=1) > 0)
    return bool((goes_on | (segment[:, 1:] == 0)).all() & (segment[:, 0] > 0).all())


def last_real_token(text: TextSide) -> Tensor:
    """Index of each row's last token that is not padding, [B]. Raises: AttentionError for a row without tokens."""
    real = text.segment > 0
    last = (torch.arange(real.shape[1], device=real.device) * real).amax(1)
    empty = (~real.any(1)).nonzero().flatten().tolist()
    if empty:
        raise AttentionError(f"rows {empty} of the batch hold no token; nothing can be continued there, leave them out")
    return last


def generate_tokens(
    decoding: Decoding,
    logits: Tensor,
    settings: Sampling,
    stop_ids: Collection[int] = (),
    streams: Sequence[int] | None = None,
    ended: Collection[int] = frozenset(),
) -> Iterator[list[TokenEvent]]:
    """Continue prefilled rows until each has reached a stop id, its length or the context's end.

    Yields one list of events per step.
    `logits` are those of `Decoding.prefill`. `streams` names each row's random stream. `ended` is looked at after every yield:
    a row that the reader has put there (its text reached a stop string) is dropped.
    """
    sampler = Sampler(settings, range(len(logits)) if streams is None else streams)
    stops = frozenset(stop_ids)
    limit = [min(settings.max_new_tokens, room) for room in decoding.room]
    for index in itertools.count():
        chosen = sampler(logits, decoding.rows)
        events = [
            TokenEvent(row, index, token, "stop" if token in stops else "length" if index + 1 >= limit[row] else None)
            for row, token in zip(decoding.rows, chosen.tolist(), strict=True)
        ]
        yield events
        live = [place for place, event in enumerate(events) if event.finish is None and event.row not in ended]
        if not live:
            return
        if len(live) < len(events):
            decoding.keep(live)
            chosen = chosen[live]
        logits = decoding.step(chosen)
