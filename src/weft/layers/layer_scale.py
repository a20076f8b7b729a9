"""Pre-norm blocks whose branches are scaled by a learned vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from weft.core.errors import ConfigError
from weft.layers.attention import Attention
from weft.layers.block import PreNormBlock
from weft.layers.slots import BlockContext


class Sum(nn.Module):
    """x + branch, where a branch has no scale."""

    def forward(self, hidden: Tensor, branch: Tensor) -> Tensor:
        return hidden + branch


def scaled_sum(hidden: Tensor, branch: Tensor, scale: Tensor) -> Tensor:
    """hidden + scale * branch: in one pass over memory where no gradient is taken, for which that one would need another."""
    return hidden + scale * branch if torch.is_grad_enabled() else torch.addcmul(hidden, branch, scale)


class LayerScale(nn.Module):
    """x + scale * branch, one learned factor a channel.

    Shapes: x and branch [..., D] -> [..., D]. Source: arXiv:2103.17239.
    """

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), initial))

    def forward(self, hidden: Tensor, branch: Tensor) -> Tensor:
        return scaled_sum(hidden, branch, self.weight)


class LayerScaleBlock(PreNormBlock):
    """scale(x, attention(norm(x))), then scale(x, feed_forward(norm(x))), with the three slots of `PreNormBlock`.

    The scales add a branch to x: `LayerScale`, or gates.

    Shapes: hidden [B, T, D] -> [B, T, D].
    """

    def __init__(
        self,
        attention_norm: nn.Module,
        attention: nn.Module,
        attention_scale: nn.Module,
        feed_forward_norm: nn.Module,
        feed_forward: nn.Module,
        feed_forward_scale: nn.Module,
    ) -> None:
        super().__init__(attention_norm, attention, feed_forward_norm, feed_forward)
        self.attention_scale = attention_scale
        self.feed_forward_scale = feed_forward_scale

    def last(self, hidden: Tensor, context: BlockContext, index: Tensor) -> Tensor:
        rows = torch.arange(len(index), device=index.device)
        mixed = self.attention(self.attention_norm(hidden), context, index)
        one = self.attention_scale(hidden[rows, index][:, None], mixed)
        return self.feed_forward_scale(one, self.feed_forward(self.feed_forward_norm(one)))

    def forward(self, hidden: Tensor, memory: dict[str, Any], context: BlockContext) -> tuple[Tensor, dict[str, Any]]:
        hidden, memory = self.before_attention(hidden, memory, context)
        hidden = self.attention_scale(hidden, self.attention(self.attention_norm(hidden), context))
        hidden, memory = self.before_feed_forward(hidden, memory, context)
        hidden = self.feed_forward_scale(hidden, self.feed_forward(self.feed_forward_norm(hidden)))
        hidden, memory = self.after_block(hidden, memory, context)
        return hidden, memory


def layer_scale_blocks(
    width: int,
    num_layers: int,
    num_heads: int,
    feed_forward: Callable[[], nn.Module],
    norm_eps: float,
    initial_scale: float,
) -> nn.ModuleList:
    """`num_layers` blocks of multi-head attention with biases and what `feed_forward` builds, LayerNorm before both."""
    if width % num_heads:
        raise ConfigError(f"width {width} does not split into {num_heads} heads; choose a number of heads that divides it")
    return nn.ModuleList(
        LayerScaleBlock(
            nn.LayerNorm(width, eps=norm_eps),
            Attention(width, num_heads, layer=layer),
            LayerScale(width, initial_scale),
            nn.LayerNorm(width, eps=norm_eps),
            feed_forward(),
            LayerScale(width, initial_scale),
        )
        for layer in range(num_layers)
    )
