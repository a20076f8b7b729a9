"""Sub-LayerNorm: one more norm before the last linear layer of attention and of the feed-forward."""

from __future__ import annotations

from torch import Tensor, nn

from weft.layers.attention import Attention
from weft.layers.block import PreNormBlock
from weft.layers.feed_forward import GatedFeedForward


class NormedLinear(nn.Module):
    """linear(norm(x)). Shapes: [..., C] -> [..., D]. Source: Foundation Transformers, arXiv:2210.06423."""

    def __init__(self, input_width: int, output_width: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(input_width, eps=norm_eps)
        self.linear = nn.Linear(input_width, output_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


def sub_norm_block(width: int, num_heads: int, feed_forward_width: int, norm_eps: float, layer: int) -> PreNormBlock:
    """A pre-norm block with sub-norms and a SwiGLU feed-forward; biases everywhere but on the key.

    Source: EVA-02, arXiv:2303.11331.
    """
    attention = Attention(width, num_heads, layer=layer, key_bias=False)
    attention.output = NormedLinear(width, width, norm_eps)
    feed_forward = GatedFeedForward(width, feed_forward_width, bias=True)
    feed_forward.down = NormedLinear(feed_forward_width, width, norm_eps)
    return PreNormBlock(nn.LayerNorm(width, eps=norm_eps), attention, nn.LayerNorm(width, eps=norm_eps), feed_forward)
