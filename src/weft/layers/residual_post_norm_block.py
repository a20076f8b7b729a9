"""The transformer block that norms what it adds."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from weft.layers.branch_dropping import Dropping, kept
from weft.layers.slots import BlockContext


class ResidualPostNormBlock(nn.Module):
    """x + norm(attention(x)), then x + norm(feed_forward(x)): the residual stream itself is never normed.

    It serves encoders, which no fusion reaches, so it has no slots.

    Shapes: hidden [B, T, D] -> [B, T, D]; `memory` is carried along. Source: Swin V2, arXiv:2111.09883.
    """

    def __init__(
        self, attention: nn.Module, attention_norm: nn.Module, feed_forward: nn.Module, feed_forward_norm: nn.Module
    ) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = attention_norm
        self.feed_forward = feed_forward
        self.feed_forward_norm = feed_forward_norm
        self.dropping: Dropping = kept

    def forward(self, hidden: Tensor, memory: dict[str, Any], context: BlockContext) -> tuple[Tensor, dict[str, Any]]:
        hidden = hidden + self.dropping(self.attention_norm(self.attention(hidden, context)))
        hidden = hidden + self.dropping(self.feed_forward_norm(self.feed_forward(hidden)))
        return hidden, memory
