"""AdamW with its state kept by parameter name."""

from __future__ import annotations

import torch

from weft.training.moments import MomentOptimizer


class AdamW(MomentOptimizer):
    """AdamW in one fused call per group. Source: arXiv:1711.05101."""

    def _update(self, names: list[str], rate: float, decay: float) -> None:
        taken = [self.moments.taken[n] for n in names]
        torch._foreach_add_(taken, 1)
        torch._fused_adamw_(
            [self.parameters[n] for n in names],
            self._gradients(names),
            [self.moments.first[n] for n in names],
            [self.moments.second[n] for n in names],
            [],
            taken,
            lr=rate,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=decay,
            eps=self.epsilon,
            amsgrad=False,
            maximize=False,
        )
