"""What a residual branch goes through before it is added: nothing, unless a block is told to lose some of it in training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from weft.core.errors import ConfigError

Dropping = Callable[[Tensor], Tensor]


def kept(branch: Tensor) -> Tensor:
    """The whole branch. A function, not a module: a decoding step passes two of them in every block."""
    return branch


class StochasticDepth(nn.Module):
    """While training, each sample loses the whole branch with probability `rate`; in evaluation mode none does.

    `scaled`: a branch that stays is divided by the chance to stay, so that its mean is the same in both modes.

    Shapes: [N, ...] -> the same. Source: arXiv:1603.09382.
    """

    def __init__(self, rate: float, scaled: bool = True) -> None:
        super().__init__()
        self.rate = checked_rate(rate, "stochastic depth")
        self.scaled = scaled

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return branch
        stays = torch.rand(len(branch), *(1,) * (branch.dim() - 1), device=branch.device) >= self.rate
        return branch * (stays.to(branch.dtype) / (1 - self.rate) if self.scaled else stays)


class LayerDrop(nn.Module):
    """While training, a layer is skipped by the whole batch with probability `rate`; in evaluation mode none is.

    A skipped layer is computed and passed by: every parameter then has a gradient (of zero) on every rank, which sharded and
    replicated training needs, and nobody waits for the draw.

    Shapes: before and after the layer [B, T, D] -> [B, T, D]. Source: arXiv:1909.11556.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = checked_rate(rate, "layer drop")

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return after
        return torch.where(torch.rand((), device=before.device) < self.rate, before, after)


def rising_rates(last: float, num_layers: int) -> tuple[float, ...]:
    """The rate of each layer, from zero in even steps to that of the last one."""
    return tuple(last * layer / max(num_layers - 1, 1) for layer in range(num_layers))


def checked_rate(rate: float, what: str) -> float:
    """The rate itself. Raises: ConfigError where it is none."""
    if not 0 <= rate < 1:
        raise ConfigError(f"{what} is a probability from 0 to below 1, got {rate}")
    return rate
