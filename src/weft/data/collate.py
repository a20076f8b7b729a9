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

    Positions start at 0 in every sample; its number within the row, from 1, is its segment. Orders are the positions, but in
    what an encoder reads all are 0: everyone sees everyone. A medium that several samples show is one item, encoded once,
    unless another instruction goes with it or it is, say, the first picture of one sample and the second of another; its spans
    are as many as its places. The targets of a sample have its weight; where each weighs 1 none is written.

    Raises: DataError where a row is longer than `pad_to`, nothing is to collate, or only some samples have a decoder side.
    """
    packed = [[row] if isinstance(row, EncodedSample) else list(row) for row in rows]
    if not packed or not all(packed):
        raise DataError("nothing to collate: a batch needs at least one row and a row at least one sample")
    with_decoder = {sample.decoder is not None for row in packed for sample in row}
    if len(with_decoder) > 1:
        raise DataError("some samples of a batch have a decoder side and some have none; their processors are of two systems")
    text = _Text(max(sum(len(sample) for sample in row) for row in packed), len(packed), pad_to)
    decoder: _Text | None = None
    if with_decoder == {True}:
        decoder = _Text(max(sum(sample.num_written for sample in row) for row in packed), len(packed), pad_to)
    samples: list[SampleRef] = []
    media: dict[str, _Stream] = {}
    for r, row in enumerate(packed):
        start = written = 0
        for number, sample in enumerate(row, start=1):
            text.write(r, start, number, sample.tokens, sample.targets, sample.modality, decoder is None, sample.positions)
            text.weigh(r, number, sample.weight)
            for stream, visible in sample.visible.items():
                text.show(r, start, stream, visible, media[stream].num_in_row(r) if stream in media else 0)
            if decoder is not None and sample.decoder is not None:
                decoder.write(r, written, number, sample.decoder.tokens, sample.decoder.targets)
                decoder.weigh(r, number, sample.weight)
            for stream, items in sample.media.items():
                for place, item in enumerate(items):
                    media.setdefault(stream, _Stream()).add(item, r, start, len(samples), place)
            samples.append(SampleRef(r, number, sample.source, sample.id, sample.group))
            start += len(sample)
            written += sample.num_written
    return MultimodalBatch(
        main=text.side(),
        media={name: stream.batch() for name, stream in media.items()},
        samples=tuple(samples),
        decoder=None if decoder is None else decoder.side(),
    )


class _Text:
    """One text of a batch while it is put together: rows of `longest` tokens or, where it is given, of `pad_to`."""

    def __init__(self, longest: int, num_rows: int, pad_to: int | None) -> None:
        width = longest if pad_to is None else pad_to
        if longest > width:
            raise DataError(f"a row of {longest} tokens does not fit into pad_to={width}")
        self.tokens, self.order, self.segment, self.positions, self.modality = (
            np.zeros((num_rows, width), dtype=np.int64) for _ in range(5)
        )
        self.targets = np.full((num_rows, width), IGNORE, dtype=np.int64)
        self.weights: np.ndarray | None = None
        self.visible: dict[str, np.ndarray] = {}

    def write(
        self,
        row: int,
        start: int,
        segment: int,
        tokens: np.ndarray,
        targets: np.ndarray,
        modality: np.ndarray | int = 0,
        causal: bool = True,
        positions: np.ndarray | None = None,
    ) -> None:
        here = slice(start, start + len(tokens))
        self.tokens[row, here] = tokens
        self.targets[row, here] = targets
        self.modality[row, here] = modality
        self.positions[row, here] = np.arange(len(tokens)) if positions is None else positions
        self.order[row, here] = np.arange(len(tokens)) if causal else 0
        self.segment[row, here] = segment

    def weigh(self, row: int, segment: int, weight: float) -> None:
        """What the targets of a sample that was written weigh."""
        if weight != 1.0:
            if self.weights is None:
                self.weights = np.ones(self.tokens.shape, dtype=np.float32)
            self.weights[row, self.segment[row] == segment] = weight

    def show(self, row: int, start: int, stream: str, visible: np.ndarray, num_before: int) -> None:
        """Which media of a stream a sample's tokens see, behind `num_before` media of earlier samples of the row."""
        if stream not in self.visible:
            self.visible[stream] = np.broadcast_to(np.array((0, -1)), (*self.tokens.shape, 2)).copy()
        sees = visible[:, :1] <= visible[:, 1:]
        self.visible[stream][row, start : start + len(visible)] = visible + num_before * sees

    def side(self) -> TextSide:
        tensor = torch.from_numpy
        return TextSide(
            tokens=tensor(self.tokens),
            order=tensor(self.order),
            segment=tensor(self.segment),
            positions=tensor(self.positions),
            modality=tensor(self.modality),
            targets={"text": tensor(self.targets)},
            weights={} if self.weights is None else {"text": tensor(self.weights)},
            visible={stream: tensor(array) for stream, array in self.visible.items()},
        )


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

    def num_in_row(self, row: int) -> int:
        """Media that the text of a row shows so far."""
        return sum(offset == 0 and shown == row for _, offset, shown, _, _ in self.spans)

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
