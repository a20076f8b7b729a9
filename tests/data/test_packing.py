"""Rows and batches: packing changes where samples lie and nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.core.batch import IGNORE, MultimodalBatch
from weft.core.errors import DataError
from weft.core.layout import MediaLayout
from weft.data.collate import collate
from weft.data.encoded_sample import EncodedMedium, EncodedSample
from weft.data.images import ImageTransform
from weft.data.packing import best_fit, pack

TRANSFORM = ImageTransform(size=2)


def sample(length: int, number: int, num_media: int = 0) -> EncodedSample:
    """Tokens that tell which sample they are of; media of two positions each from position 1 on."""
    tokens = 1000 * number + np.arange(length)
    targets = np.append(tokens[1:], IGNORE)
    modality = np.zeros(length, dtype=np.int64)
    modality[1 : 1 + 2 * num_media] = 1
    media = [
        EncodedMedium(np.full((1, 2, 2, 3), 10 * number + i, np.uint8), TRANSFORM, MediaLayout(1, 2), ((0, 1 + 2 * i, 2),))
        for i in range(num_media)
    ]
    return EncodedSample(tokens, targets, modality, {"image": tuple(media)} if media else {}, str(number), "set", "g")


SAMPLES = [sample(length, i, media) for i, (length, media) in enumerate([(7, 1), (3, 0), (9, 2), (5, 2), (2, 0), (6, 0)])]


def of_sample(batch: MultimodalBatch, id: str) -> dict[str, torch.Tensor]:
    """Everything that a batch holds of one sample."""
    number = next(i for i, s in enumerate(batch.samples) if s.id == id)
    ref = batch.samples[number]
    here = batch.main.segment[ref.row] == ref.segment
    start = int(here.nonzero()[0])
    sides = {name: getattr(batch.main, name)[ref.row][here] for name in ("tokens", "order", "positions", "modality")}
    sides["targets"] = batch.main.targets["text"][ref.row][here]
    if "image" in batch.media:
        media = batch.media["image"]
        items = (media.item_sample == number).nonzero().flatten()
        spans = media.spans[torch.isin(media.spans[:, 0], items)]
        assert (spans[:, 2] == ref.row).all()
        sides |= {"units": media.units[items], "starts": spans[:, 3] - start, "lengths": spans[:, 4]}
    return sides


@pytest.mark.parametrize("max_tokens", [9, 12, 40])
def test_a_packed_sample_equals_the_sample_alone(max_tokens):
    rows = pack(SAMPLES, max_tokens)
    packed = collate(rows, pad_to=max_tokens)
    assert packed.main.tokens.shape == (len(rows), max_tokens)
    for one in SAMPLES:
        alone, together = of_sample(collate([one]), one.id), of_sample(packed, one.id)
        for name, values in alone.items():
            assert torch.equal(values, together[name]), name


def test_padding_is_segment_0_without_loss():
    batch = collate(SAMPLES, pad_to=12)
    padding = batch.main.segment == 0
    assert batch.num_tokens == sum(len(s) for s in SAMPLES)
    assert (batch.main.targets["text"][padding] == IGNORE).all()
    for side in (batch.main.tokens, batch.main.order, batch.main.positions, batch.main.modality):
        assert not side[padding].any()


def test_no_target_crosses_into_the_next_sample():
    batch = collate(pack(SAMPLES, 20))
    segment, targets, tokens = batch.main.segment, batch.main.targets["text"], batch.main.tokens
    row, column = (targets != IGNORE).nonzero(as_tuple=True)
    assert (segment[row, column] == segment[row, column + 1]).all()
    assert (targets[row, column] == tokens[row, column + 1]).all()


def test_media_are_numbered_in_the_order_of_rows():
    batch = collate(pack(SAMPLES, 20))
    media = batch.media["image"]
    assert media.unit_item.tolist() == list(range(5))
    assert media.spans[:, 0].tolist() == list(range(5))
    assert media.item_sample.tolist() == sorted(media.item_sample.tolist())
    for item, row in zip(media.spans[:, 0], media.spans[:, 2], strict=True):
        assert batch.samples[int(media.item_sample[item])].row == row


@settings(max_examples=50, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30))
def test_every_sample_is_in_one_row_that_has_room_and_no_two_rows_could_be_one(lengths):
    rows = best_fit(lengths, 50)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 50 for row in rows)
    filled = sorted(sum(lengths[i] for i in row) for row in rows)
    assert len(rows) < 2 or filled[0] + filled[1] > 50, "two rows could have been one"


def test_packing_fills_the_fullest_row_with_room():
    assert best_fit([5, 6, 4, 3, 2], 10) == [[0, 3, 4], [1, 2]]


def test_a_sample_longer_than_a_row_is_named():
    with pytest.raises(DataError, match="sample 'set:2' has 9 tokens and a packed row 8"):
        pack(SAMPLES, 8)
    with pytest.raises(DataError, match="9 tokens does not fit into pad_to=8"):
        collate(SAMPLES, pad_to=8)
    with pytest.raises(DataError, match="nothing to collate"):
        collate([])
