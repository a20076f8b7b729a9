"""Pooling by attention from one learned probe."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weft.core.attention_rule import AttentionRule
from weft.layers.feed_forward import FeedForward
from weft.layers.kernels import attend


class AttentionPooling(nn.Module):
    """A learned probe attends to all features, then x + feed_forward(norm(x)); the probe itself is not added.

    Shapes: [N, L, D] -> [N, D]. Source: the MAP head of arXiv:2106.04560, used by SigLIP, arXiv:2303.15343.
    """

    def __init__(self, width: int, num_heads: int, feed_forward_width: int, activation: str, norm_eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.probe = nn.Parameter(torch.zeros(width))
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.feed_forward = FeedForward(width, feed_forward_width, activation)

    def forward(self, features: Tensor) -> Tensor:
        batch, length, _ = features.shape
        query = self.query(self.probe).view(1, self.num_heads, 1, -1).expand(batch, -1, -1, -1)
        shape = (batch, length, self.num_heads, -1)
        key, value = (linear(features).view(shape).transpose(1, 2) for linear in (self.key, self.value))
        rule = AttentionRule.of_memory(batch, 1, length, features.device)
        pooled = self.output(attend(query, key, value, rule).reshape(batch, -1))
        return pooled + self.feed_forward(self.norm(pooled))
