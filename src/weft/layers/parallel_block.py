"""The transformer block whose two halves read the same input, with its three slots."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from weft.layers.routes import routed_layer
from weft.layers.slots import BlockContext, PassThrough


class ParallelBlock(nn.Module):
    """x + attention(norm(x)) + feed_forward(norm(x)), the slots standing where each half reads.

    Attention and feed-forward both read the block's input, so between them stands no state of which the attention is a part.
    `before_attention` comes before both. `before_feed_forward` stands on the feed-forward's side: it reads what the attention
    reads, the feed-forward reads what it leaves, and the attention's output joins behind. `after_block` reads the sum. Empty
    slots leave the published block.

    Shapes: hidden [B, T, D] -> [B, T, D]; `memory` is carried along for the slots.
    Source: GPT-NeoX-20B, arXiv:2204.06745, which takes the form from GPT-J.
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

    def forward(self, hidden: Tensor, memory: dict[str, Any], context: BlockContext) -> tuple[Tensor, dict[str, Any]]:
        hidden, memory = self.before_attention(hidden, memory, context)
        attended = self.attention(self.attention_norm(hidden), context)
        hidden, memory = self.before_feed_forward(hidden, memory, context)
        hidden = hidden + attended + routed_layer(self.feed_forward, self.feed_forward_norm(hidden), context.routing)
        hidden, memory = self.after_block(hidden, memory, context)
        return hidden, memory
