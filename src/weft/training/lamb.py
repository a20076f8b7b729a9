"""LAMB: Adam's direction, each decayed parameter's step in proportion to the size of its weights."""

from __future__ import annotations

import torch
from torch import Tensor

from weft.training.moments import MomentOptimizer


class Lamb(MomentOptimizer):
    """Adam with bias correction and averaged gradients; decay joins the direction, which is scaled by |weights| / |direction|.

    Decay and that trust ratio go together: parameters that are not decayed take Adam's step. Where either norm is zero the
    ratio is one.

    Source: arXiv:1904.00962; that only decayed parameters are scaled is the choice of the implementation that EVA-CLIP trains
    with, arXiv:2303.15389.
    """

    def _update(self, names: list[str], rate: float, decay: float) -> None:
        weights: list[Tensor] = [self.parameters[n] for n in names]
        directions = self._directions(names)
        if decay:
            torch._foreach_add_(directions, weights, alpha=decay)
            torch._foreach_mul_(directions, _trust_ratios(weights, directions))
        torch._foreach_add_(weights, directions, alpha=-rate)

    def _directions(self, names: list[str]) -> list[Tensor]:
        """Take the gradients into the moments; the corrected first over the root of the corrected second."""
        gradients = self._gradients(names)
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


def _corrections(beta: float, taken: list[Tensor]) -> list[Tensor]:
    """What a running mean from zero has reached after the steps taken: 1 - beta ** t."""
    return list(1 - beta ** torch.stack(taken))


def _trust_ratios(weights: list[Tensor], directions: list[Tensor]) -> list[Tensor]:
    """|weights| / |direction| of each parameter, one where either is zero."""
    weight, direction = torch.stack(torch._foreach_norm(weights)), torch.stack(torch._foreach_norm(directions))
    either_zero = (weight == 0) | (direction == 0)
    return list((weight / direction).masked_fill(either_zero, 1))
