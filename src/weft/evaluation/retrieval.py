"""Retrieval both ways: the texts of a medium among all texts, and the medium of a text among all media."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weft.core.errors import DataError
from weft.evaluation.statistics import Estimate, Marks, of_type
from weft.evaluation.ties import recall_at

RECALLED = (1, 5, 10)
_BLOCK = 1024  # queries that are scored together, so that no matrix of all pairs is held


@dataclass(frozen=True)
class Recalls:
    """Recall at k by k. Units: fractions. `texts`: media look for their texts; `media`: texts look for their medium."""

    texts: dict[int, Estimate]
    media: dict[int, Estimate]

    @property
    def mean(self) -> float:
        """The mean over both directions and all k."""
        both = [*self.texts.values(), *self.media.values()]
        return sum(estimate.value for estimate in both) / len(both)


def retrieval(
    score: Callable[[slice, slice], Tensor], medium_of_text: Sequence[int], num_media: int, ks: Sequence[int] = RECALLED
) -> Recalls:
    """Recall at k both ways, several texts a medium.

    A medium counts as right where any of its texts is among its k best; a text where its one medium is. Equal scores count by
    the chance that a random order would give. Intervals take the texts of a medium together, as they are not independent.

    `score(media, texts)` gives the similarities of some media with some texts: `lambda m, t: matrix[m, t]`, or
    `lambda m, t: similarities(media[m], texts[t])` where the matrix is too large to hold.
    Source: the protocol of Karpathy and Fei-Fei, arXiv:1412.2306.

    Raises: DataError where a medium has no text or a text no medium.
    """
    owner = torch.as_tensor(medium_of_text)
    if not len(owner) or sorted(set(owner.tolist())) != list(range(num_media)):
        raise DataError(
            f"retrieval needs every one of the {num_media} media to own a text and every text to name one of them, got "
            f"{len(set(owner.tolist()))} different owners between {min(medium_of_text, default=0)} and "
            f"{max(medium_of_text, default=0)}"
        )
    if not ks or min(ks) < 1:
        raise DataError(f"recall is taken at ranks of 1 and more, got {tuple(ks)}")
    everything = slice(None)
    media = torch.arange(num_media)
    of_media = [_recalls(score(block, everything), media[block, None] == owner, ks) for block in _blocks(num_media)]
    of_texts = [_recalls(score(everything, block).T, owner[block, None] == media, ks) for block in _blocks(len(owner))]
    return Recalls(
        _estimates(torch.cat(of_media), [str(i) for i in range(num_media)], ks),
        _estimates(torch.cat(of_texts), [str(i) for i in owner.tolist()], ks),
    )


def _recalls(scores: Tensor, right: Tensor, ks: Sequence[int]) -> Tensor:
    """Shapes: scores, right [queries, candidates] -> [queries, ks]."""
    if scores.shape != right.shape:
        raise DataError(f"expected scores of shape {tuple(right.shape)}, got {tuple(scores.shape)}")
    return torch.stack([recall_at(scores, right, k) for k in ks], dim=1)


def _estimates(marks: Tensor, groups: list[str], ks: Sequence[int]) -> dict[int, Estimate]:
    return {k: of_type(Marks(tuple(marks[:, i].tolist()), tuple(groups))) for i, k in enumerate(ks)}


def _blocks(count: int) -> list[slice]:
    return [slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]
