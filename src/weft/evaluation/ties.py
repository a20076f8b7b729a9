"""Ranks among equals: what a ranking is worth where scores are equal and chance would decide."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from weft.core.errors import DataError


def recall_at(scores: Tensor, right: Tensor, k: int) -> Tensor:
    """For each row the chance that a right candidate is among the `k` best, equal scores being ordered at random.

    Without ties this is 0 or 1. A model that scores all alike gets what guessing gets: k / M with one right candidate.

    Shapes: scores [N, M], right [N, M] bool with at least one a row -> [N] in float64.
    Raises: DataError for scores that are no numbers, which no order has a place for.
    """
    if torch.isnan(scores).any():
        raise DataError(f"{int(torch.isnan(scores).sum())} of {scores.numel()} scores are not a number; nothing can be ranked")
    best = scores.masked_fill(~right, -math.inf).amax(1, keepdim=True)
    equal = scores == best
    counts = torch.stack([k - (scores > best).sum(1), equal.sum(1), (equal & right).sum(1)], dim=1)
    return torch.tensor([among_first(*row) for row in counts.tolist()], dtype=torch.float64)


def among_first(places: int, tied: int, winners: int) -> float:
    """The chance that one of `winners` is in the first `places` of `tied` candidates in random order."""
    places = min(max(places, 0), tied)
    orders = math.comb(tied, places)
    return (orders - math.comb(tied - winners, places)) / orders  # whole numbers: without ties exactly 0 or 1
