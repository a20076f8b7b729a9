"""Gates for channels, from what the whole picture holds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class SqueezeExcite(nn.Module):
    """One number in [0, 1] for each channel, from the channels' means over all positions; the caller multiplies with it.

    Shapes: [N, C, H, W] -> [N, C, 1, 1]. Source: arXiv:1709.01507.
    """

    def __init__(
        self,
        width: int,
        hidden_width: int,
        activation: Callable[[Tensor], Tensor] = torch.relu,
        gate: Callable[[Tensor], Tensor] = torch.sigmoid,
    ) -> None:
        super().__init__()
        self.squeeze = nn.Linear(width, hidden_width)
        self.excite = nn.Linear(hidden_width, width)
        self.activation = activation
        self.gate = gate
        for layer in (self.squeeze, self.excite):
            deviation = layer.in_features**-0.5
            nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.squeeze(x.mean((2, 3))))
        return self.gate(self.excite(hidden))[:, :, None, None]
