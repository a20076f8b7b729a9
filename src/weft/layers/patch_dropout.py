"""Training on a random part of a picture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weft.core.errors import ConfigError


class PatchDropout(nn.Module):
    """While training, keep a random share of each picture's patches, in random order; the first token, the class token, stays.

    Whatever belongs to the tokens (their places on the grid) is left out with them. In evaluation mode nothing is.

    Shapes: hidden [N, 1 + L, C] and places [1, 1 + L, A] -> [N, 1 + K, C] and [N, 1 + K, A], K = max(1, int(L * (1 - rate))).
    Source: FLIP, arXiv:2212.00794.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ConfigError(f"patch dropout leaves out a share of the patches, from 0 to below 1, got {rate}")
        self.rate = rate

    def forward(self, hidden: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training or self.rate == 0:
            return hidden, places
        pictures, num_patches = len(hidden), hidden.shape[1] - 1
        num_kept = max(1, int(num_patches * (1 - self.rate)))
        noise = torch.rand(pictures, num_patches, device=hidden.device)
        patches = noise.argsort(1)[:, :num_kept] + 1
        kept = torch.cat((patches.new_zeros(pictures, 1), patches), 1)
        picture = torch.arange(pictures, device=hidden.device)[:, None]
        return hidden[picture, kept], places[0, kept]
