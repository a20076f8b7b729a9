"""LAMB: Adam's direction, each decayed parameter's step in proportion to the size of its weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weft.training.moments import Moments


class Lamb:
    """Adam with bias correction and averaged gradients; decay joins the direction, which is scaled by |weights| / |direction|.

    Decay and that trust ratio go together: parameters with fewer than two dimensions and those named in `undecayed` have
    neither, and take Adam's step. Where either norm is zero the ratio is one. `factors` multiplies the rate by name. A
    parameter without a gradient is left alone for that step.

    Source: arXiv:1904.00962; that only decayed parameters are scaled is the choice of the implementation that EVA-CLIP trains
    with, arXiv:2303.15389.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-6,
        weight_decay: float = 0.0,
        undecayed: Collection[str] = (),
        factors: Mapping[str, float] | None = None,
    ) -> None:
        self.parameters = dict(parameters)
        self.betas = betas
        self.epsilon = epsilon
        self.groups: dict[tuple[float, float], list[str]] = defaultdict(list)
        for name, parameter in self.parameters.items():
            decay = weight_decay if parameter.ndim >= 2 and name not in undecayed else 0.0
            self.groups[decay, (factors or {}).get(name, 1.0)].append(name)
        self.moments = Moments(self.parameters)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update every parameter that has a gradient."""
        for (decay, factor), members in self.groups.items():
            names = [n for n in members if self.parameters[n].grad is not None]
            if not names:
                continue
            weights: list[Tensor] = [self.parameters[n] for n in names]
            directions = self._directions(names)
            if decay:
                torch._foreach_add_(directions, weights, alpha=decay)
                torch._foreach_mul_(directions, _trust_ratios(weights, directions))
            torch._foreach_add_(weights, directions, alpha=-rate * factor)

    def _directions(self, names: list[str]) -> list[Tensor]:
        """Take the gradients into the moments; the corrected first over the root of the corrected second."""
        gradients = [g for n in names if (g := self.parameters[n].grad) is not None]
        first, second = [self.moments.first[n] for n in names], [self.moments.second[n] for n in names]
        taken = [self.moments.taken[n] for n in names]
        beta1, beta2 = self.betas
        torch._foreach_add_(taken, 1)
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        roots = torch._foreach_sqrt(torch._foreach_div(second, _corrections(beta2, taken)))
        torch._foreach_add_(roots, self.epsilon)
        directions = torch._foreach_div(first, _corrections(beta1, taken))
        torch._foreach_div_(directions, roots)
        return list(directions)

    def state_dict(self) -> dict[str, Any]:
        return self.moments.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises: RunError for the state of other parameters."""
        self.moments.load_state_dict(state)


def _corrections(beta: float, taken: list[Tensor]) -> list[Tensor]:
    """What a running mean from zero has reached after the steps taken: 1 - beta ** t."""
    return list(1 - beta ** torch.stack(taken))


def _trust_ratios(weights: list[Tensor], directions: list[Tensor]) -> list[Tensor]:
    """|weights| / |direction| of each parameter, one where either is zero."""
    weight, direction = torch.stack(torch._foreach_norm(weights)), torch.stack(torch._foreach_norm(directions))
    either_zero = (weight == 0) | (direction == 0)
    return list((weight / direction).masked_fill(either_zero, 1))
