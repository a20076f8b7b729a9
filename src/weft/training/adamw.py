"""AdamW with its state kept by parameter name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from weft.training.moments import Moments


class AdamW:
    """AdamW in one fused call per group of parameters that share decay and rate factor.

    Weight decay leaves out parameters with fewer than two dimensions and those named in `undecayed`. `factors` multiplies the
    rate by name. A parameter without a gradient is left alone for that step. Source: arXiv:1711.05101.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
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
            taken = [self.moments.taken[n] for n in names]
            torch._foreach_add_(taken, 1)
            torch._fused_adamw_(
                [self.parameters[n] for n in names],
                [g for n in names if (g := self.parameters[n].grad) is not None],
                [self.moments.first[n] for n in names],
                [self.moments.second[n] for n in names],
                [],
                taken,
                lr=rate * factor,
                beta1=self.betas[0],
                beta2=self.betas[1],
                weight_decay=decay,
                eps=self.epsilon,
                amsgrad=False,
                maximize=False,
            )

    def state_dict(self) -> dict[str, Any]:
        return self.moments.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises: RunError for the state of other parameters."""
        self.moments.load_state_dict(state)
