"""Layers that keep activations at unit variance without normalising them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from weft.core.errors import ConfigError, unknown_name
from weft.layers.feed_forward import activation

# One over the standard deviation of activation(z) for a standard normal z, as published: estimated there, true to a thousandth.
# The tanh form of GELU shares GELU's.
GAMMA = {
    "gelu": 1.7015043497085571,
    "gelu_tanh": 1.7015043497085571,
    "relu": 1.7139588594436646,
    "silu": 1.7881293296813965,
}
VARIANCE_FLOOR = 1e-4  # of variance times fan-in, which is about 1 at the start


def scaled_activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation of a name, scaled so that a standard normal input leaves with variance 1.

    Raises: ConfigError for an activation whose scale was not published. Source: arXiv:2101.08692.
    """
    if name not in GAMMA:
        raise unknown_name("scaled activation", name, GAMMA)
    return partial(_scaled, activation(name), GAMMA[name])


def _scaled(plain: Callable[[Tensor], Tensor], gamma: float, x: Tensor) -> Tensor:
    return plain(x) * gamma


class ScaledConvolution(nn.Module):
    """A convolution whose kernels are standardised: each output channel's has mean 0 and variance gain ** 2 / fan-in.

    The kernel is gain * (W - mean) / sqrt(max(variance * fan-in, 1e-4)) with statistics in float32, as the published JAX code
    computes it; a port that adds 1e-5 to the variance instead damps kernels of a large fan-in at the start by up to a percent.
    Inputs are padded with zeros so that a side of S positions leaves with ceil(S / stride), the odd zero at the end.

    Shapes: [N, C, H, W] -> [N, output_width, ceil(H / stride), ceil(W / stride)].
    Source: scaled weight standardisation, arXiv:2101.08692; NFNet, arXiv:2102.06171.
    """

    def __init__(self, input_width: int, output_width: int, kernel_size: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        if input_width % groups or output_width % groups:
            raise ConfigError(f"widths {input_width} and {output_width} do not divide into {groups} groups of channels")
        self.kernel_size = kernel_size
        self.stride = stride
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(output_width, input_width // groups, kernel_size, kernel_size))
        self.gain = nn.Parameter(torch.ones(output_width))
        self.bias = nn.Parameter(torch.zeros(output_width))
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)

    def kernel(self) -> Tensor:
        """The standardised weight, in the weight's precision."""
        flat = self.weight.float().flatten(1)
        centred = flat - flat.mean(1, keepdim=True)
        length = torch.linalg.vector_norm(centred, dim=1, keepdim=True)  # squared, it is variance * fan-in
        scaled = centred * (self.gain.float()[:, None] / length.clamp_min(VARIANCE_FLOOR**0.5))
        return scaled.view_as(self.weight).to(self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        (top, bottom), (left, right) = (same_padding(side, self.kernel_size, self.stride) for side in x.shape[2:])
        if (top, left) != (bottom, right):
            x, top, left = nn.functional.pad(x, (left, right, top, bottom)), 0, 0
        return nn.functional.conv2d(x, self.kernel(), self.bias, self.stride, (top, left), groups=self.groups)


def same_padding(side: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """Zeros before and after a side so that ceil(side / stride) outputs fit; of an odd number the larger half goes after."""
    total = max((-(-side // stride) - 1) * stride + kernel_size - side, 0)
    return total // 2, total - total // 2
