"""The residual block of NFNet: no normalisation, its variance known in advance."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from weft.core.errors import ConfigError
from weft.layers.branch_dropping import StochasticDepth
from weft.layers.scaled_convolution import ScaledConvolution, scaled_activation
from weft.layers.squeeze_excite import SqueezeExcite


class NormalizerFreeBlock(nn.Module):
    """x + alpha * skip_gain * branch(activation(x) / input_deviation), the branch a bottleneck with two grouped convolutions.

    `input_deviation` is the deviation that x is expected to have, so the branch sees unit variance. Where the width or the
    stride changes, the shortcut is a convolution of the same activation, averaged over 2 x 2 first; elsewhere a fresh block is
    exactly the identity, because skip_gain starts at zero. In training each sample loses the branch with probability
    `drop_rate`; a branch that stays is not scaled up, as in the published code.

    Shapes: [N, C, H, W] -> [N, output_width, ceil(H / stride), ceil(W / stride)].
    Source: arXiv:2102.06171; alpha and the deviations arXiv:2101.08692; skip_gain is SkipInit, arXiv:2002.10444.
    """

    def __init__(
        self,
        input_width: int,
        output_width: int,
        *,
        stride: int = 1,
        group_width: int = 128,
        activation_name: str = "gelu_tanh",
        alpha: float = 0.2,
        input_deviation: float = 1.0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        width = output_width // 2
        if output_width % 2 or width % group_width:
            raise ConfigError(
                f"half of a block's {output_width} channels does not divide into groups of {group_width}; choose another width"
            )
        groups = width // group_width
        self.alpha = alpha
        self.input_deviation = input_deviation
        self.stride = stride
        self.dropping = StochasticDepth(drop_rate, scaled=False)
        self.activation = scaled_activation(activation_name)
        changes = stride > 1 or input_width != output_width
        self.shortcut = ScaledConvolution(input_width, output_width) if changes else None
        self.reduce = ScaledConvolution(input_width, width)
        self.spatial = ScaledConvolution(width, width, 3, stride, groups)
        self.spatial_again = ScaledConvolution(width, width, 3, 1, groups)
        self.expand = ScaledConvolution(width, output_width)
        self.squeeze_excite = SqueezeExcite(output_width, output_width // 2)
        self.skip_gain = nn.Parameter(torch.zeros(()))  # zero: the variance of a deep stack does not grow at the start

    def forward(self, x: Tensor) -> Tensor:
        active = self.activation(x) / self.input_deviation
        branch = self.reduce(active)
        for convolution in (self.spatial, self.spatial_again, self.expand):
            branch = convolution(self.activation(branch))
        # The gate is about one half at the start and is doubled. All factors of a channel meet before the large tensors do.
        factor = self.squeeze_excite(branch) * (2 * self.alpha * self.skip_gain)
        return torch.addcmul(self._shortcut(x, active), branch, self.dropping(factor))

    def _shortcut(self, x: Tensor, active: Tensor) -> Tensor:
        if self.shortcut is None:
            return x
        if self.stride > 1:  # a cell at an odd edge averages what it holds
            active = nn.functional.avg_pool2d(active, 2, self.stride, ceil_mode=True, count_include_pad=False)
        return self.shortcut(active)


def deviations(depths: tuple[int, ...], alpha: float) -> list[list[float]]:
    """The deviation that each block of each stage is expected to get.

    A block adds alpha ** 2 to the variance. The first block of a stage replaces the shortcut by a convolution of an activation
    of unit variance, so counting starts again from 1 before its own alpha ** 2.
    """
    expected, stages = 1.0, []
    for depth in depths:
        inside = []
        for block in range(depth):
            inside.append(expected)
            expected = math.sqrt((1.0 if block == 0 else expected**2) + alpha**2)
        stages.append(inside)
    return stages
