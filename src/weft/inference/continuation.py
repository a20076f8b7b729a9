"""Batches of one row as prefixes of one another: what a cache already holds, and what is left to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from weft.core.batch import MediaBatch, MultimodalBatch, TextSide

_NEVER = 2**62  # above any index of a token


def with_tokens(batch: MultimodalBatch, tokens: Sequence[int]) -> MultimodalBatch:
    """A one-row batch with text tokens behind its last written one; order and position count on, targets are left out."""
    text = batch.written
    new = torch.tensor([list(tokens)], dtype=text.tokens.dtype, device=text.tokens.device)
    count = torch.arange(1, new.shape[1] + 1, device=new.device)[None]
    side = TextSide(
        tokens=torch.cat((text.tokens, new), 1),
        order=torch.cat((text.order, text.order[:, -1:] + count), 1),
        segment=torch.cat((text.segment, text.segment[:, -1:].expand_as(new)), 1),
        positions=torch.cat((text.positions, text.positions[:, -1:] + count), 1),
        modality=torch.cat((text.modality, torch.zeros_like(new)), 1),
        visible={
            stream: torch.cat((sees, sees[:, -1:].expand(-1, new.shape[1], -1)), 1) for stream, sees in text.visible.items()
        },
    )
    return replace(batch, main=side) if batch.decoder is None else replace(batch, decoder=side)


def before(batch: MultimodalBatch, stop: int) -> MultimodalBatch:
    """The written tokens of a batch before index `stop`, with the media that stand there, or with all that an encoder reads.

    No medium may lie across the cut.
    """
    return _part(batch, slice(0, stop))


def behind(batch: MultimodalBatch, start: int) -> MultimodalBatch:
    """The written tokens of a batch from index `start` on, with the media that stand there; an encoder reads nothing more.

    No medium may lie across the cut.
    """
    return _part(batch, slice(start, batch.written.tokens.shape[1]))


def shared_prefix(stored: MultimodalBatch, wanted: MultimodalBatch) -> int:
    """Tokens at the start of a one-row batch that are those of another: text, rule, positions and whole media all equal.

    What an encoder reads, it reads both ways: there one difference leaves nothing to share.

    The result is a legal cut: every order before it is below every order behind it, so what is stored there does not depend on
    what follows. At least one token of `wanted` is left to read, because the next token's logits come from it.
    """
    ours, theirs = stored.written, wanted.written
    limit = _same_tokens(ours, theirs, min(ours.tokens.shape[1], theirs.tokens.shape[1] - 1))
    if wanted.decoder is not None:
        if not _read_alike(stored, wanted):
            return 0
        return limit
    for stream in stored.media.keys() | wanted.media.keys():
        limit = min(limit, _first_difference(stored.media.get(stream), wanted.media.get(stream)))
    highest = theirs.order[0].cummax(0).values
    lowest = theirs.order[0].flip(0).cummin(0).values.flip(0)
    for cut in range(limit, 0, -1):
        within = not any(_across(items.spans, cut) for items in wanted.media.values())
        if bool(highest[cut - 1] < lowest[cut]) and within and not _sees_behind(wanted, cut):
            return cut
    return 0


def _same_tokens(ours: TextSide, theirs: TextSide, length: int) -> int:
    """How many of the first `length` tokens of two one-row texts are the same, under the same rule."""
    same = torch.ones(length, dtype=torch.bool, device=ours.tokens.device)
    for name in ("tokens", "order", "segment", "positions", "modality"):
        same &= getattr(ours, name)[0, :length] == getattr(theirs, name)[0, :length]
    for stream in ours.visible.keys() | theirs.visible.keys():
        same &= _visible_alike(ours.visible.get(stream), theirs.visible.get(stream), length)
    return int(same.long().cumprod(0).sum())


def _read_alike(stored: MultimodalBatch, wanted: MultimodalBatch) -> bool:
    """Whether the encoder reads the same text and the same media in two one-row batches."""
    length = stored.main.tokens.shape[1]
    if length != wanted.main.tokens.shape[1] or _same_tokens(stored.main, wanted.main, length) < length:
        return False
    streams = stored.media.keys() | wanted.media.keys()
    return all(_first_difference(stored.media.get(name), wanted.media.get(name)) == _NEVER for name in streams)


def _visible_alike(ours: Tensor | None, theirs: Tensor | None, length: int) -> Tensor:
    """[length] bool: the tokens of one row that see the same media; nothing told is nothing seen."""
    if ours is None or theirs is None:
        told = ours if theirs is None else theirs
        assert told is not None
        return told[0, :length, 0] > told[0, :length, 1]
    return (ours[0, :length] == theirs[0, :length]).all(-1)


def _sees_behind(batch: MultimodalBatch, cut: int) -> bool:
    """Whether a token before the cut sees a medium that stands behind it."""
    for stream, visible in batch.main.visible.items():
        sees = visible[0, :cut][visible[0, :cut, 0] <= visible[0, :cut, 1]]
        spans = batch.media[stream].spans if stream in batch.media else visible.new_zeros(0, 5)
        if len(sees) and int(sees[:, 1].max()) >= int(((spans[:, 3] < cut) & (spans[:, 1] == 0)).sum()):
            return True
    return False


def _across(spans: Tensor, cut: int) -> bool:
    return bool(((spans[:, 3] < cut) & (spans[:, 3] + spans[:, 4] > cut)).any())


def _first_difference(ours: MediaBatch | None, theirs: MediaBatch | None) -> int:
    """Index of the first token at which the media of a stream differ, `_NEVER` where they do not."""
    first, second = (sorted(items.spans.tolist(), key=lambda span: span[3]) if items else [] for items in (ours, theirs))
    for left, right in zip(first, second, strict=False):
        if left[1:] != right[1:]:
            return min(left[3], right[3])
        assert ours is not None and theirs is not None
        pixels, others = ours.units[ours.unit_item == left[0]], theirs.units[theirs.unit_item == right[0]]
        same = torch.equal(pixels, others) and torch.equal(_instruction(ours, left[0]), _instruction(theirs, right[0]))
        if ours.layout[left[0]] != theirs.layout[right[0]] or not same:
            return left[3]
    rest = first[len(second) :] + second[len(first) :]
    return rest[0][3] if rest else _NEVER


def _instruction(media: MediaBatch, item: int) -> Tensor:
    """The tokens of an item's instruction, none where it has none."""
    if media.instruction is None:
        return media.spans.new_zeros(0)
    row = media.instruction[item]
    return row[row >= 0]


def _part(batch: MultimodalBatch, part: slice) -> MultimodalBatch:
    if batch.decoder is not None:
        decoder = _side_part(batch.decoder, part)
        if part.start == 0:
            return replace(batch, decoder=decoder)
        return replace(batch, main=_side_part(batch.main, slice(0, 0)), media={}, decoder=decoder)
    media = {stream: _media_part(items, part) for stream, items in batch.media.items()}
    kept = {stream: items for stream, items in media.items() if items is not None}
    return replace(batch, main=_side_part(batch.main, part), media=kept)


def _side_part(text: TextSide, part: slice) -> TextSide:
    return TextSide(
        tokens=text.tokens[:, part],
        order=text.order[:, part],
        segment=text.segment[:, part],
        positions=text.positions[:, part],
        modality=text.modality[:, part],
        targets={head: targets[:, part] for head, targets in text.targets.items()},
        weights={head: weights[:, part] for head, weights in text.weights.items()},
        visible={stream: sees[:, part] for stream, sees in text.visible.items()},
    )


def _media_part(media: MediaBatch, part: slice) -> MediaBatch | None:
    inside = (media.spans[:, 3] >= part.start) & (media.spans[:, 3] < part.stop)
    spans = media.spans[inside].clone()
    items = spans[:, 0].unique()
    if len(items) == 0:
        return None
    spans[:, 0] = torch.searchsorted(items, spans[:, 0].contiguous())
    spans[:, 3] -= part.start
    chosen = torch.isin(media.unit_item, items)
    return MediaBatch(
        units=media.units[chosen],
        unit_item=torch.searchsorted(items, media.unit_item[chosen]),
        layout=tuple(media.layout[item] for item in items.tolist()),
        spans=spans,
        item_sample=media.item_sample[items],
        instruction=None if media.instruction is None else media.instruction[items],
        item_place=None if media.item_place is None else media.item_place[items],
    )
