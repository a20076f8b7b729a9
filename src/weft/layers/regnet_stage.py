"""RegNet's residual bottlenecks with squeeze-excite and layer norm, at constant width and resolution."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from weft.layers.layer_norm_2d import LayerNorm2d
from weft.layers.squeeze_excite import SqueezeExcite


class RegNetBlock(nn.Module):
    """1x1 convolution, 3x3 depthwise convolution, squeeze-excite, 1x1 convolution, each normalised; then silu(x + result).

    Shapes: [N, C, H, W] -> [N, C, H, W].
    Source: RegNet, arXiv:2003.13678, in the form of Honeybee, arXiv:2312.06742: one channel a group, SiLU for ReLU, layer norm
    for batch norm.
    """

    def __init__(self, width: int, norm_eps: float) -> None:
        super().__init__()
        self.expand = nn.Conv2d(width, width, 1, bias=False)
        self.expand_norm = LayerNorm2d(width, eps=norm_eps)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.depthwise_norm = LayerNorm2d(width, eps=norm_eps)
        self.squeeze_excite = SqueezeExcite(width, round(width / 4), activation=F.silu)
        self.reduce = nn.Conv2d(width, width, 1, bias=False)
        self.reduce_norm = LayerNorm2d(width, eps=norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.silu(self.expand_norm(self.expand(x)))
        hidden = F.silu(self.depthwise_norm(self.depthwise(hidden)))
        hidden = hidden * self.squeeze_excite(hidden)
        return F.silu(x + self.reduce_norm(self.reduce(hidden)))


def regnet_stage(width: int, depth: int, norm_eps: float) -> nn.Sequential:
    """`depth` blocks, one after another."""
    return nn.Sequential(*(RegNetBlock(width, norm_eps) for _ in range(depth)))
