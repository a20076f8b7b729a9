"""Relative positions as learned numbers that are added to attention scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class RelativePositionBias(nn.Module):
    """One number a head for each bucket of distances: near distances have a bucket each, farther ones share logarithmic ones.

    With `both_ways` half of the buckets is for keys behind the query; without, all of those count as distance 0. A
    `weft.core.score_bias.ScoreBias`.

    Shapes: query positions [B, Tq], key positions [B, Tk] -> [B, H, Tq, Tk]. Source: T5, arXiv:1910.10683.
    """

    def __init__(self, num_heads: int, num_buckets: int, max_distance: int, both_ways: bool) -> None:
        super().__init__()
        self.num_buckets, self.max_distance, self.both_ways = num_buckets, max_distance, both_ways
        self.weight = nn.Parameter(torch.zeros(num_buckets, num_heads))

    def forward(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        bucket = self.bucket(key_positions[:, None, :] - query_positions[:, :, None])
        return nn.functional.embedding(bucket, self.weight).permute(0, 3, 1, 2)

    def bucket(self, offset: Tensor) -> Tensor:
        """The bucket of each offset, key minus query."""
        size = self.num_buckets // 2 if self.both_ways else self.num_buckets
        exact = size // 2
        distance = offset.abs() if self.both_ways else offset.neg().clamp_min(0)
        octaves = torch.log(distance.clamp_min(1).float() / exact) / math.log(self.max_distance / exact)
        shared = (exact + (octaves * (size - exact)).long()).clamp_max(size - 1)
        side = (offset > 0).long() * size if self.both_ways else 0
        return side + torch.where(distance < exact, distance, shared)
