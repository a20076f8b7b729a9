"""Stacks of pre-norm blocks with LayerNorm: the trunk of vision transformers and of the text towers beside them."""

from __future__ import annotations

from itertools import islice

from torch import Tensor, nn

from weft.core.errors import ConfigError
from weft.layers.attention import Attention
from weft.layers.block import PreNormBlock
from weft.layers.branch_dropping import LayerDrop
from weft.layers.feed_forward import FeedForward
from weft.layers.precision import working_precision
from weft.layers.slots import BlockContext


def pre_norm_blocks(
    width: int,
    num_layers: int,
    num_heads: int,
    feed_forward_width: int,
    activation: str,
    norm_eps: float,
    key_bias: bool = True,
    dropout: float = 0.0,
) -> nn.ModuleList:
    """`num_layers` blocks of multi-head attention and a plain feed-forward, biases everywhere but, if said so, at the keys.

    `dropout` is that of attention's probabilities and of what both branches add.
    """
    if width % num_heads:
        raise ConfigError(f"width {width} does not split into {num_heads} heads; choose a number of heads that divides it")
    blocks = nn.ModuleList(
        PreNormBlock(
            nn.LayerNorm(width, eps=norm_eps),
            Attention(width, num_heads, layer=layer, key_bias=key_bias, dropout=dropout),
            nn.LayerNorm(width, eps=norm_eps),
            FeedForward(width, feed_forward_width, activation),
        )
        for layer in range(num_layers)
    )
    if dropout:
        for block in blocks:
            block.dropping = nn.Dropout(dropout)
    return blocks


def run_blocks(
    blocks: nn.ModuleList,
    hidden: Tensor,
    context: BlockContext,
    stop: int | None = None,
    layer_drop: LayerDrop | None = None,
) -> Tensor:
    """The hidden state [B, T, D] after the first `stop` blocks (None: after all)."""
    memory: dict[str, object] = {}
    hidden = working_precision(hidden)
    for block in islice(blocks, stop):
        after, memory = block(hidden, memory, context)
        hidden = after if layer_drop is None else layer_drop(hidden, after)
    return hidden


def num_blocks_to_run(feature_layer: int, num_layers: int) -> int:
    """How many blocks lead to a hidden state: 0 enters the first block, -1 leaves the last one, -2 the one before.

    Raises: ConfigError where the stack has no such hidden state.
    """
    stop = feature_layer if feature_layer >= 0 else num_layers + 1 + feature_layer
    if not 0 <= stop <= num_layers:
        raise ConfigError(
            f"{num_layers} layers have no hidden state {feature_layer}; it goes from {-num_layers - 1} to {num_layers}"
        )
    return stop
