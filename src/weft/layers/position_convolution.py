"""Positions by a convolution over the sequence itself."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PositionConvolution(nn.Module):
    """A wide grouped convolution whose output tells a frame where it stands among its neighbours.

    Weight norm: the kernel is `direction`, brought to length one at each of its places, times `magnitude`. Outside of the
    sequence stands zero; of an even kernel's outputs the last one falls away.

    Shapes: hidden [N, L, D] -> [N, L, D].
    Source: wav2vec 2.0, arXiv:2006.11477; weight norm, arXiv:1602.07868.
    """

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.direction = nn.Parameter(torch.empty(width, width // groups, kernel))
        self.magnitude = nn.Parameter(torch.empty(1, 1, kernel))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.direction, std=math.sqrt(4 / (kernel * width)))
        if not self.direction.is_meta:  # without values there is no length to take
            with torch.no_grad():
                self.magnitude.copy_(self._length())

    def _length(self) -> Tensor:
        return self.direction.float().square().sum((0, 1), keepdim=True).sqrt().to(self.direction.dtype)

    def forward(self, hidden: Tensor) -> Tensor:
        kernel = self.direction * (self.magnitude / self._length())
        places = kernel.shape[2]
        positions = F.conv1d(hidden.transpose(1, 2), kernel, self.bias, padding=places // 2, groups=self.groups)
        return F.gelu(positions[:, :, : hidden.shape[1]]).transpose(1, 2)
