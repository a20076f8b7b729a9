"""What Adam and its kin share: the moments of gradients, and the groups of parameters that are updated in one call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weft.core.errors import RunError


class Moments:
    """Running means of each parameter's gradient and of its square, and the steps that the parameter has taken, by name."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.first = {n: torch.zeros_like(p, memory_format=torch.preserve_format) for n, p in parameters.items()}
        self.second = {n: torch.zeros_like(p, memory_format=torch.preserve_format) for n, p in parameters.items()}
        self.taken = {n: torch.zeros((), dtype=torch.float32, device=p.device) for n, p in parameters.items()}

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


class MomentOptimizer(ABC):
    """An optimizer over parameters by name, in groups that share weight decay and rate factor.

    Weight decay leaves out parameters with fewer than two dimensions and those named in `undecayed`. `factors` multiplies the
    rate by name. A parameter without a gradient is left alone for that step.
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
            if names := [n for n in members if self.parameters[n].grad is not None]:
                self._update(names, rate * factor, decay)

    @abstractmethod
    def _update(self, names: list[str], rate: float, decay: float) -> None:
        """One update of parameters that all have a gradient."""

    def _gradients(self, names: list[str]) -> list[Tensor]:
        return [g for n in names if (g := self.parameters[n].grad) is not None]

    def state_dict(self) -> dict[str, Any]:
        return self.moments.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises: RunError for the state of other parameters."""
        self.moments.load_state_dict(state)
