"""Retrieval: exact on similarities made by hand, several texts a medium, and chance where all are equal."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from weft.core.errors import DataError
from weft.evaluation import retrieval as module
from weft.evaluation.retrieval import retrieval
from weft.evaluation.ties import recall_at


def recalls(matrix, owner, ks=(1, 2, 3)):
    both = retrieval(lambda m, t: matrix[m, t], owner, len(matrix), ks)
    return [both.texts[k].value for k in ks], [both.media[k].value for k in ks]


def test_the_identity_is_found_at_the_first_place():
    assert recalls(torch.eye(6), range(6)) == ([1.0] * 3, [1.0] * 3)


def test_any_of_a_mediums_texts_counts_and_a_text_has_one_medium():
    owner = [0, 0, 1, 1, 2, 2]
    matrix = torch.tensor(
        [
            [0.9, 0.1, 0.2, 0.3, 0.4, 0.5],  # finds its first text first: its second, last of all, does not matter
            [0.6, 0.7, 0.5, 0.4, 0.3, 0.2],  # its best text is third
            [0.8, 0.7, 0.6, 0.1, 0.2, 0.5],  # its best text is fourth
        ]
    )
    of_media, of_texts = recalls(matrix, owner, (1, 2, 3, 4))
    assert of_media == pytest.approx([1 / 3, 1 / 3, 2 / 3, 1.0])
    # the texts' media stand at places 1, 3 (of 0.1 0.7 0.7), 2, 1, 3 (of 0.4 0.3 0.2), and 1 or 2 (0.5 twice)
    assert of_texts == pytest.approx([2.5 / 6, 4 / 6, 1.0, 1.0])


def test_the_order_of_texts_and_media_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(7, 21, generator=generator)
    owner = torch.arange(7).repeat(3)
    rows, columns = torch.randperm(7, generator=generator), torch.randperm(21, generator=generator)
    moved = torch.empty(7, dtype=torch.long)
    moved[rows] = torch.arange(7)
    assert recalls(matrix, owner) == recalls(matrix[rows][:, columns], moved[owner[columns]])


@pytest.mark.parametrize("texts_each", [1, 5])
def test_a_model_that_finds_all_alike_gets_chance(texts_each):
    media, ks = 12, (1, 5, 10)
    texts = media * texts_each
    owner = torch.arange(media).repeat_interleave(texts_each)
    of_media, of_texts = recalls(torch.zeros(media, texts), owner, ks)
    assert of_texts == pytest.approx([k / media for k in ks])
    # none of a medium's texts among k drawn without replacement
    missed = [math.comb(texts - texts_each, k) / math.comb(texts, k) for k in ks]
    assert of_media == pytest.approx([1 - m for m in missed])


def test_the_chance_among_equals_is_that_of_all_orders():
    scores = torch.tensor([[0.9, 0.5, 0.5, 0.5, 0.5, 0.1]])
    right = torch.tensor([[False, True, False, True, False, True]])
    for k in range(1, 7):
        hits = []
        for order in itertools.permutations(range(6)):
            ranked = sorted(order, key=lambda i: -float(scores[0, i]))  # stable: equals stay in the order drawn
            hits.append(any(right[0, i] for i in ranked[:k]))
        assert recall_at(scores, right, k).item() == pytest.approx(sum(hits) / len(hits))


def test_blocks_of_queries_change_nothing(monkeypatch):
    matrix = torch.randn(9, 27, generator=torch.Generator().manual_seed(1))
    owner = torch.arange(9).repeat_interleave(3)
    whole = recalls(matrix, owner)
    asked = []
    monkeypatch.setattr(module, "_BLOCK", 4)

    def score(media, texts):
        asked.append(matrix[media, texts].numel())
        return matrix[media, texts]

    both = retrieval(score, owner, 9, (1, 2, 3))
    assert ([both.texts[k].value for k in (1, 2, 3)], [both.media[k].value for k in (1, 2, 3)]) == whole
    assert max(asked) == 4 * 27


def test_intervals_and_the_mean_of_both_directions():
    matrix = torch.tensor([[0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.4]])  # the second medium finds its texts, not they it
    both = retrieval(lambda m, t: matrix[m, t], [0, 0, 1, 1], 2, (1,))
    assert both.texts[1].value == 1.0 and both.texts[1].num == 2
    assert both.media[1].value == 0.5 and both.media[1].num == 4
    assert (both.media[1].low, both.media[1].high) == (0.0, 1.0)  # two media, whose texts go together, say no more
    assert both.mean == 0.75


@pytest.mark.parametrize(
    ("matrix", "owner", "message"),
    [
        (torch.zeros(2, 2), [0, 0], "every one of the 2 media to own a text"),
        (torch.zeros(2, 3), [0, 1, 2], "every one of the 2 media to own a text"),
        (torch.zeros(2, 0), [], "every one of the 2 media to own a text"),
        (torch.zeros(2, 3), [0, 1], r"expected scores of shape \(2, 2\), got \(2, 3\)"),
        (torch.full((2, 2), math.nan), [0, 1], "4 of 4 scores are not a number"),
    ],
)
def test_what_cannot_be_measured_is_refused(matrix, owner, message):
    with pytest.raises(DataError, match=message):
        recalls(matrix, owner)


def test_ranks_begin_at_one():
    with pytest.raises(DataError, match="ranks of 1 and more"):
        recalls(torch.eye(2), [0, 1], (0, 1))
