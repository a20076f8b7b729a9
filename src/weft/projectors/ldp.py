"""The lightweight downsample projector of MobileVLM."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from weft.core.interfaces import InputProjector
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures, MediaTokens
from weft.layers.feature_grid import check_grid, to_channels_first, to_channels_last
from weft.layers.layer_norm_2d import LayerNorm2d
from weft.layers.squeeze_excite import SqueezeExcite


class DepthwiseBlock(nn.Module):
    """3x3 depthwise convolution, hard swish, squeeze-excite, 1x1 convolution; x is added where the resolution stays.

    Shapes: [N, D, H, W] -> [N, D, ceil(H / stride), ceil(W / stride)].
    Source: MobileNetV3, arXiv:1905.02244, without expansion and with layer norm for batch norm.
    """

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False)
        self.depthwise_norm = LayerNorm2d(width)
        hidden_width = max(8, round_to_eight(width // 4))
        self.squeeze_excite = SqueezeExcite(width, hidden_width, gate=F.hardsigmoid)
        self.pointwise = nn.Conv2d(width, width, 1, bias=False)
        self.pointwise_norm = LayerNorm2d(width)
        self.residual = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.hardswish(self.depthwise_norm(self.depthwise(x)))
        hidden = self.pointwise_norm(self.pointwise(hidden * self.squeeze_excite(hidden)))
        return x + hidden if self.residual else hidden


def round_to_eight(channels: int) -> int:
    """The nearest multiple of 8, one more where that would be less than nine tenths, as MobileNet counts channels."""
    near = (channels + 4) // 8 * 8
    return near if near >= 0.9 * channels else near + 8


class LDP(InputProjector):
    """An MLP at full resolution, then two depthwise blocks, the second of which halves the grid both ways.

    Shapes: features (N, H * W, C) -> tokens (N * ceil(H / 2) * ceil(W / 2), D).
    Raises: ConfigError for features that are no grid. The published code takes any number of features that has a whole root.
    Source: MobileVLM, arXiv:2312.16886.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(InputProjector.Config):
        def build(self, input_width: int, output_width: int) -> LDP:
            return LDP(self, input_width, output_width)

        def num_tokens(self, layout: MediaLayout) -> int:
            check_grid(layout, "LDP")
            return layout.num_units * -(-layout.height // 2) * -(-layout.width // 2)

    def __init__(self, config: Config, input_width: int, output_width: int) -> None:
        super().__init__()
        self.config = config
        self.up = nn.Linear(input_width, output_width)
        self.down = nn.Linear(output_width, output_width)
        self.blocks = nn.Sequential(DepthwiseBlock(output_width, stride=1), DepthwiseBlock(output_width, stride=2))

    def forward(self, features: MediaFeatures) -> MediaTokens:
        for layout in set(features.layout):
            self.config.num_tokens(layout)
        return features.on_grids(self.downsample)

    def downsample(self, values: Tensor, height: int, width: int) -> Tensor:
        """Shapes: [N, height * width, C] -> [N, ceil(height / 2) * ceil(width / 2), D]."""
        hidden = self.down(F.gelu(self.up(values)))
        return to_channels_last(self.blocks(to_channels_first(hidden, height, width)))
