"""Encoded samples to a batch: one row a sample, or several samples packed in a row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from weft.core.batch import IGNORE, MediaBatch, MultimodalBatch, SampleRef, TextSide
from weft.core.errors import DataError
from weft.core.layout import MediaLayout
from weft.data.encoded_sample import EncodedMedium, EncodedSample

Rows = Sequence[EncodedSample] | Sequence[Sequence[EncodedSample]]


def collate(rows: Rows, pad_to: int | None = None) -> MultimodalBatch:
    """A batch of samples, one a row, or of rows of several samples; padded on the right to the longest row or to `pad_to`.

    Orders and positions start at 0 in every sample; its number within the row, from 1, is its segment. A medium that several
    samples show is one item, encoded once, unless another instruction goes with it or it is, say, the first picture of one
    sample and the second of another; its spans are as many as its places.

    Raises: DataError where a row is longer than `pad_to` or there is nothing to collate.
    """
    packed = [[row] if isinstance(row, EncodedSample) else list(row) for row in rows]
    if not packed or not all(packed):
        raise DataError("nothing to collate: a batch needs at least one row and a row at least one sample")
    lengths = [sum(len(sample) for sample in row) for row in packed]
    width = max(lengths) if pad_to is None else pad_to
    if max(lengths) > width:
        raise DataError(f"a row of {max(lengths)} tokens does not fit into pad_to={width}")
    tokens, order, segment, modality = (np.zeros((len(packed), width), dtype=np.int64) for _ in range(4))
    targets = np.full((len(packed), width), IGNORE, dtype=np.int64)
    samples: list[SampleRef] = []
    media: dict[str, _Stream] = {}
    for r, row in enumerate(packed):
        start = 0
        for number, sample in enumerate(row, start=1):
            here = slice(start, start + len(sample))
            tokens[r, here] = sample.tokens
            targets[r, here] = sample.targets
            modality[r, here] = sample.modality
            order[r, here] = np.arange(len(sample))
            segment[r, here] = number
            for stream, items in sample.media.items():
                for place, item in enumerate(items):
                    media.setdefault(stream, _Stream()).add(item, r, start, len(samples), place)
            samples.append(SampleRef(r, number, sample.source, sample.id, sample.group))
            start += len(sample)
    orders = torch.from_numpy(order)
    text = TextSide(
        tokens=torch.from_numpy(tokens),
        order=orders,
        segment=torch.from_numpy(segment),
        positions=orders.clone(),
        modality=torch.from_numpy(modality),
        targets={"text": torch.from_numpy(targets)},
    )
    return MultimodalBatch(text, {name: stream.batch() for name, stream in media.items()}, tuple(samples))


class _Stream:
    """The media of one stream while a batch is put together."""

    def __init__(self) -> None:
        self.items: list[EncodedMedium] = []
        self.known: dict[tuple[MediaLayout, bytes, bytes, int], int] = {}
        self.spans: list[tuple[int, int, int, int, int]] = []
        self.item_sample: list[int] = []
        self.item_place: list[int] = []

    def add(self, item: EncodedMedium, row: int, start: int, sample: int, place: int) -> None:
        number = len(self.items)
        if item.spans:  # without a place in the text a medium belongs to its sample alone
            asked = b"" if item.instruction is None else item.instruction.tobytes()
            number = self.known.setdefault((item.layout, item.units.tobytes(), asked, place), number)
        for offset, position, length in item.spans:
            self.spans.append((number, offset, row, start + position, length))
        if number == len(self.items):
            self.items.append(item)
            self.item_sample.append(sample)
            self.item_place.append(place)

    def batch(self) -> MediaBatch:
        transform = self.items[0].transform
        if any(item.transform != transform for item in self.items):
            raise DataError("the samples of a batch come from processors with different transforms")
        layout: tuple[MediaLayout, ...] = tuple(item.layout for item in self.items)
        return MediaBatch(
            units=transform.normalise([unit for item in self.items for unit in item.units]),
            unit_item=torch.arange(len(self.items)).repeat_interleave(torch.tensor([len(item.units) for item in self.items])),
            layout=layout,
            spans=torch.tensor(self.spans, dtype=torch.long).reshape(-1, 5),
            item_sample=torch.tensor(self.item_sample, dtype=torch.long),
            instruction=self.instruction(),
            targets=self.targets(),
            item_place=torch.tensor(self.item_place, dtype=torch.long),
        )

    def targets(self) -> Tensor | None:
        """What is to be said of each feature of each unit, [N, L], nothing where no item says it; None where none does."""
        if all(item.targets is None for item in self.items):
            return None
        length = max(item.layout.height * item.layout.width for item in self.items)
        rows = torch.full((sum(len(item.units) for item in self.items), length), IGNORE)
        first = 0
        for item in self.items:
            if item.targets is not None:
                rows[first : first + len(item.units), : item.targets.shape[1]] = torch.from_numpy(item.targets)
            first += len(item.units)
        return rows

    def instruction(self) -> Tensor | None:
        """The items' instructions as [items, T], -1 behind their ends; None where no item has one."""
        if all(item.instruction is None for item in self.items):
            return None
        none = np.zeros(0, dtype=np.int64)
        rows = [torch.from_numpy(none if item.instruction is None else item.instruction) for item in self.items]
        return pad_sequence(rows, batch_first=True, padding_value=-1)
