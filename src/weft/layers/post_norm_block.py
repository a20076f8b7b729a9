"""The post-norm transformer block with its three slots, and stacks of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from weft.core.errors import ConfigError
from weft.layers.attention import Attention
from weft.layers.branch_dropping import Dropping, kept
from weft.layers.feed_forward import activation
from weft.layers.routes import routed_layer
from weft.layers.slots import BlockContext, PassThrough


class PostNormFeedForward(nn.Module):
    """norm(x + feed_forward(x)), the second half of a post-norm block: whole, because every route has a norm of its own.

    In training each of its outputs is lost with probability `dropout` before it is added.

    Shapes: [B, T, D] -> [B, T, D].
    """

    def __init__(self, width: int, hidden_width: int, activation_name: str, norm_eps: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden_width)
        self.down = nn.Linear(hidden_width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.activation = activation(activation_name)
        self.dropping: Dropping = nn.Dropout(dropout) if dropout else kept
        self.routes = nn.ModuleDict()

    def forward(self, hidden: Tensor, context: BlockContext | None = None) -> Tensor:
        """Without a context every token goes this way; with one, each goes through its expert, where there are experts."""
        if context is not None and context.routing is not None and self.routes:
            return routed_layer(self, hidden, context.routing)
        return self.norm(hidden + self.dropping(self.down(self.activation(self.up(hidden)))))


class PostNormBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + feed_forward(x)), with the slots of `PreNormBlock` around both.

    `dropping` is what attention goes through before it is added; the feed-forward, which adds for itself, has its own.

    Shapes: hidden [B, T, D] -> [B, T, D]; `memory` is carried along for the slots. Source: BERT, arXiv:1810.04805.
    """

    def __init__(self, attention: nn.Module, attention_norm: nn.Module, feed_forward: nn.Module) -> None:
        super().__init__()
        self.before_attention: nn.Module = PassThrough()
        self.attention = attention
        self.attention_norm = attention_norm
        self.before_feed_forward: nn.Module = PassThrough()
        self.feed_forward = feed_forward
        self.after_block: nn.Module = PassThrough()
        self.dropping: Dropping = kept

    def forward(self, hidden: Tensor, memory: dict[str, Any], context: BlockContext) -> tuple[Tensor, dict[str, Any]]:
        hidden, memory = self.before_attention(hidden, memory, context)
        hidden = self.attention_norm(hidden + self.dropping(self.attention(hidden, context)))
        hidden, memory = self.before_feed_forward(hidden, memory, context)
        hidden = self.feed_forward(hidden, context)
        hidden, memory = self.after_block(hidden, memory, context)
        return hidden, memory


def post_norm_blocks(
    width: int,
    num_layers: int,
    num_heads: int,
    feed_forward_width: int,
    activation_name: str,
    norm_eps: float,
    dropout: float = 0.0,
) -> nn.ModuleList:
    """`num_layers` blocks of multi-head attention and a plain feed-forward, biases everywhere: the trunk of BERT.

    `dropout` is that of attention's probabilities and of what both halves add.

    Raises: ConfigError where the width does not split into the heads.
    """
    if width % num_heads:
        raise ConfigError(f"width {width} does not split into {num_heads} heads; choose a number of heads that divides it")
    blocks = [
        PostNormBlock(
            Attention(width, num_heads, layer=layer, dropout=dropout),
            nn.LayerNorm(width, eps=norm_eps),
            PostNormFeedForward(width, feed_forward_width, activation_name, norm_eps, dropout),
        )
        for layer in range(num_layers)
    ]
    if dropout:
        for block in blocks:
            block.dropping = nn.Dropout(dropout)
    return nn.ModuleList(blocks)
