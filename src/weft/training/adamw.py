"""AdamW with its state kept by parameter name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from weft.core.errors import RunError


class AdamW:
    """AdamW in one fused call per group of parameters that share decay and rate factor.

    Weight decay leaves out parameters with fewer than two dimensions. `factors` multiplies the rate by name. A parameter
    without a gradient is left alone for that step. Source: arXiv:1711.05101.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        self.parameters = dict(parameters)
        self.betas = betas
        self.epsilon = epsilon
        self.groups: dict[tuple[float, float], list[str]] = defaultdict(list)
        for name, parameter in self.parameters.items():
            decay = weight_decay if parameter.ndim >= 2 else 0.0
            self.groups[decay, (factors or {}).get(name, 1.0)].append(name)
        self.first = {n: torch.zeros_like(p, memory_format=torch.preserve_format) for n, p in self.parameters.items()}
        self.second = {n: torch.zeros_like(p, memory_format=torch.preserve_format) for n, p in self.parameters.items()}
        self.taken = {n: torch.zeros((), dtype=torch.float32, device=p.device) for n, p in self.parameters.items()}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update every parameter that has a gradient."""
        for (decay, factor), members in self.groups.items():
            names = [n for n in members if self.parameters[n].grad is not None]
            if not names:
                continue
            taken = [self.taken[n] for n in names]
            torch._foreach_add_(taken, 1)
            torch._fused_adamw_(
                [self.parameters[n] for n in names],
                [g for n in names if (g := self.parameters[n].grad) is not None],
                [self.first[n] for n in names],
                [self.second[n] for n in names],
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

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {"first": dict(self.first), "second": dict(self.second), "taken": dict(self.taken)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Raises: RunError for the state of other parameters."""
        for kind, buffers in (("first", self.first), ("second", self.second), ("taken", self.taken)):
            if set(state[kind]) != set(buffers):
                other = sorted(set(state[kind]) ^ set(buffers))
                raise RunError(
                    f"the optimizer state holds other parameters than the stage trains: {other[:6]}; resume its recipe"
                )
            for name, buffer in buffers.items():
                buffer.copy_(state[kind][name])
