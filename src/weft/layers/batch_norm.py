"""Batch norm whose statistics may be held."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm2d):
    """Batch norm over [N, C, H, W]; with `frozen_statistics` the running mean and variance serve and stay, in training too.

    Scale and shift are parameters either way: whether they train is the stage's word. Held statistics are a property of the
    layer and not of its mode, so nothing that switches to training mode can set them free.

    Source: arXiv:1502.03167.
    """

    def __init__(self, width: int, eps: float, frozen_statistics: bool) -> None:
        super().__init__(width, eps=eps)
        self.frozen_statistics = frozen_statistics

    def forward(self, x: Tensor) -> Tensor:
        if not self.frozen_statistics:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps)
