"""The moments of gradients that Adam and its kin keep."""

from __future__ import annotations

from collections.abc import Mapping

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
