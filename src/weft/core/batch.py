"""The typed batch that every system takes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from weft.core.attention_rule import AttentionRule
from weft.core.errors import DataError
from weft.core.layout import MediaLayout

IGNORE = -100  # a target that carries no loss


@dataclass(frozen=True)
class SampleRef:
    """Which sample a segment is: `row` and `segment` of the batch, and how data names it."""

    row: int
    segment: int
    source: str
    id: str
    group: str = ""


def _move(value: Any, device: torch.device | str, non_blocking: bool) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=non_blocking)
    if isinstance(value, dict):
        return {k: _move(v, device, non_blocking) for k, v in value.items()}
    if isinstance(value, Movable):
        return value.to(device, non_blocking=non_blocking)
    return value


class Movable:
    """A frozen dataclass whose tensors move together."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same on `device`."""
        assert dataclasses.is_dataclass(self)
        fields = {f.name: _move(getattr(self, f.name), device, non_blocking) for f in dataclasses.fields(self)}
        return type(self)(**fields)


@dataclass(frozen=True)
class TextSide(Movable):
    """One text of the batch.

    Shapes: everything [B, T]. `segment` 0 is padding. `targets[h][t]` is what head h must say at position t: the processor has
    shifted already, and `IGNORE` marks no loss. `weights[h]` weighs each target's loss. `visible[stream]` [B, T, 2] is the
    first and the last medium of a stream that a token sees through cross-attention, inclusive, numbered from 0 within the
    packed row in the order of the text; first > last means none.
    """

    tokens: Tensor
    order: Tensor
    segment: Tensor
    positions: Tensor
    modality: Tensor
    targets: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    visible: dict[str, Tensor] = field(default_factory=dict)

    def rule(self) -> AttentionRule:
        """The attention rule of this text."""
        return AttentionRule(self.order, self.segment, self.positions)


@dataclass(frozen=True)
class MediaBatch(Movable):
    """The media of one stream.

    Shapes: `units` [N, ...] (images: [N, 3, H, W]), `unit_item` [N] ascending, `layout` one per item, `spans` [S, 5] = item,
    offset in the item, row, start, length; `item_sample` [items] index into the batch's `samples`; `instruction` [items, T]
    the tokens of what is asked about an item, in the vocabulary of the projector that reads them, -1 behind their end;
    `item_place` [items] the place of each item among the media of its sample, from 0, None where each is the first;
    `targets` [N, L] what is to be said of each feature (`IGNORE`: nothing), `masked` [N, L] bool the features that the encoder
    must not see.
    """

    units: Tensor
    unit_item: Tensor
    layout: tuple[MediaLayout, ...]
    spans: Tensor
    item_sample: Tensor
    instruction: Tensor | None = None
    item_place: Tensor | None = None
    targets: Tensor | None = None
    masked: Tensor | None = None


@dataclass(frozen=True)
class MultimodalBatch(Movable):
    """What `System.forward` takes: the text, the media by stream, and which sample is where.

    An encoder-decoder reads `main` and writes `decoder`; both sides of a row share its segments.
    """

    main: TextSide
    media: dict[str, MediaBatch] = field(default_factory=dict)
    samples: tuple[SampleRef, ...] = ()
    decoder: TextSide | None = None

    @property
    def written(self) -> TextSide:
        """The text that the model writes, which has the targets and is continued: the decoder's, or the only one."""
        return self.main if self.decoder is None else self.decoder

    @property
    def num_tokens(self) -> int:
        """Real tokens of every text, padding left out."""
        sides = (self.main,) if self.decoder is None else (self.main, self.decoder)
        return sum(int((side.segment > 0).sum()) for side in sides)

    def shown(self, stream: str) -> Tensor:
        """The item of a stream that each sample shows: [samples].

        Raises: DataError where a sample shows none or several.
        """
        media = self.media.get(stream)
        items: list[list[int]] = [[] for _ in self.samples]
        if media is not None and len(media.spans):
            number = {(sample.row, sample.segment): i for i, sample in enumerate(self.samples)}
            segments = self.main.segment[media.spans[:, 2], media.spans[:, 3]]
            for (item, offset, row), segment in zip(media.spans[:, :3].tolist(), segments.tolist(), strict=True):
                if offset == 0:
                    items[number[row, segment]].append(item)
        elif media is not None:
            for item, sample in enumerate(media.item_sample.tolist()):
                items[sample].append(item)
        for sample, found in zip(self.samples, items, strict=True):
            if len(found) != 1:
                raise DataError(
                    f"sample {sample.source}:{sample.id} shows {len(found)} media of stream {stream!r}; a pair is one text and "
                    "one medium"
                )
        return torch.tensor([found[0] for found in items], dtype=torch.long, device=self.main.tokens.device)

    def arrange(self, pairs: Tensor, order: Tensor, segment: Tensor) -> MultimodalBatch:
        """The batch of another pattern: row p has the text of sample `pairs[p, 0]` alone and shows the medium of sample
        `pairs[p, 1]`. A medium of many rows stays one item; it takes no position of a row.

        Shapes: pairs [P, 2] into `samples`; order, segment [B, T], what the tokens of `main` have in their new rows.
        Raises: DataError where a sample does not show exactly one medium of each stream.
        """
        text, told, seen = self.main, pairs[:, 0].tolist(), pairs[:, 1]
        rows = torch.tensor([self.samples[i].row for i in told], dtype=torch.long, device=text.tokens.device)
        number = torch.tensor([self.samples[i].segment for i in told], dtype=torch.long, device=text.tokens.device)
        inside = text.segment[rows] == number[:, None]
        lengths = inside.sum(1)
        longest = int(lengths.max()) if len(told) else 0
        places = inside.long().argsort(dim=1, descending=True, stable=True)[:, :longest]
        real = torch.arange(longest, device=places.device) < lengths[:, None]

        def taken(values: Tensor, padding: float = 0) -> Tensor:
            return values[rows[:, None], places].masked_fill(~real, padding)

        side = TextSide(
            tokens=taken(text.tokens),
            order=taken(order),
            segment=taken(segment),
            positions=taken(text.positions),
            modality=taken(text.modality),
            targets={head: taken(values, IGNORE) for head, values in text.targets.items()},
            weights={head: taken(values) for head, values in text.weights.items()},
        )
        first = side.segment[:, 0].tolist()
        samples = tuple(replace(self.samples[i], row=p, segment=first[p]) for p, i in enumerate(told))
        media = {}
        for stream, known in self.media.items():
            items = self.shown(stream)[seen]
            spans = torch.zeros(len(told), 5, dtype=torch.long, device=items.device)
            spans[:, 0], spans[:, 2] = items, torch.arange(len(told), device=items.device)
            media[stream] = replace(known, spans=spans)
        return MultimodalBatch(side, media, samples)
