"""The pre-norm transformer block with its three slots."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from weft.layers.branch_dropping import Dropping, kept
from weft.layers.routes import routed_layer
from weft.layers.slots import BlockContext, PassThrough


class PreNormBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); a fusion may fill the slots around both.

    `dropping` is what each branch goes through before it is added: dropout or stochastic depth.

    Shapes: hidden [B, T, D] -> [B, T, D]; `memory` is carried along for the slots.
    """

    def __init__(
        self, attention_norm: nn.Module, attention: nn.Module, feed_forward_norm: nn.Module, feed_forward: nn.Module
    ) -> None:
        super().__init__()
        self.before_attention: nn.Module = PassThrough()
        self.attention_norm = attention_norm
        self.attention = attention
        self.before_feed_forward: nn.Module = PassThrough()
        self.feed_forward_norm = feed_forward_norm
        self.feed_forward = feed_forward
        self.after_block: nn.Module = PassThrough()
        self.dropping: Dropping = kept

    @property
    def bare(self) -> bool:
        """Whether every slot is empty."""
        return all(isinstance(s, PassThrough) for s in (self.before_attention, self.before_feed_forward, self.after_block))

    def last(self, hidden: Tensor, context: BlockContext, index: Tensor) -> Tensor:
        """What `forward` gives for one token a row, the others only being attended to. For a bare block.

        Shapes: hidden [B, T, D], index [B] -> [B, 1, D].
        """
        rows = torch.arange(len(index), device=index.device)
        one = hidden[rows, index][:, None] + self.dropping(self.attention(self.attention_norm(hidden), context, index))
        routing = context.routing and context.routing.of(index)
        return one + self.dropping(routed_layer(self.feed_forward, self.feed_forward_norm(one), routing))

    def forward(self, hidden: Tensor, memory: dict[str, Any], context: BlockContext) -> tuple[Tensor, dict[str, Any]]:
        hidden, memory = self.before_attention(hidden, memory, context)
        hidden = hidden + self.dropping(self.attention(self.attention_norm(hidden), context))
        hidden, memory = self.before_feed_forward(hidden, memory, context)
        hidden = hidden + self.dropping(routed_layer(self.feed_forward, self.feed_forward_norm(hidden), context.routing))
        hidden, memory = self.after_block(hidden, memory, context)
        return hidden, memory
