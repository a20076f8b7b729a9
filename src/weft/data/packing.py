"""Packing: whole samples side by side in rows of bounded length."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

from weft.core.errors import DataError
from weft.data.encoded_sample import EncodedSample


def pack(samples: Sequence[EncodedSample], max_tokens: int) -> list[list[EncodedSample]]:
    """Rows of whole samples of at most `max_tokens` tokens together, in each of their texts; `collate` makes a batch of them.

    Raises: DataError where a sample alone is longer than a row.
    """
    lengths = [sample.row_length for sample in samples]
    for sample, length in zip(samples, lengths, strict=True):
        if length > max_tokens:
            name = f"{sample.source}:{sample.id}" if sample.source else sample.id
            raise DataError(f"sample {name!r} has {length} tokens and a packed row {max_tokens}; encode with max_tokens")
    return [[samples[i] for i in row] for row in best_fit(lengths, max_tokens)]


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: the longest first, each into the fullest row that still has room.

    Returns rows of indices, each row and the list of rows in the order of the samples, so that the result depends on the
    lengths alone.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), ascending
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(room, (lengths[i], -1))
        if at == len(room):
            rows.append([i])
            insort(room, (capacity - lengths[i], len(rows) - 1))
        else:
            free, row = room.pop(at)
            rows[row].append(i)
            insort(room, (free - lengths[i], row))
    return sorted(sorted(row) for row in rows)
