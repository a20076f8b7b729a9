"""Muon: momentum made orthogonal, for the matrices of hidden layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from weft.core.errors import RunError

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


@torch.no_grad()
def orthogonalise(matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bring the singular values of a stack of matrices near 1 and keep their singular vectors.

    Shapes: [N, R, C] with R <= C, all in one batched product; singular values end between about 0.7 and 1.2.
    Source: Newton-Schulz iteration of Muon, Jordan et al. 2024 (kellerjordan.github.io/posts/muon).
    """
    a, b, c = NEWTON_SCHULZ
    x = (matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-7)).to(dtype)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon:
    """Momentum, made orthogonal, for matrices; the update is scaled by max(1, rows / columns) ** 0.5.

    Matrices of one shape (or of its transpose) are stacked and iterated together: with small matrices the calls cost more than
    the arithmetic. Weight decay leaves out those named in `undecayed`. `factors` multiplies the rate by name. A parameter
    without a gradient is left alone for that step.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        undecayed: Collection[str] = (),
        factors: Mapping[str, float] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.parameters = dict(parameters)
        self.momentum = momentum
        self.decay = {n: 0.0 if n in undecayed else weight_decay for n in self.parameters}
        self.dtype = dtype
        self.factors = {n: (factors or {}).get(n, 1.0) for n in self.parameters}
        self.buffers = {n: torch.zeros_like(p, memory_format=torch.contiguous_format) for n, p in self.parameters.items()}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update every parameter that has a gradient."""
        names = [n for n, p in self.parameters.items() if p.grad is not None]
        if not names:
            return
        gradients = [g for n in names if (g := self.parameters[n].grad) is not None]
        buffers = [self.buffers[n] for n in names]
        torch._foreach_lerp_(buffers, gradients, 1.0 - self.momentum)
        directions = list(torch._foreach_lerp(gradients, buffers, self.momentum))  # Nesterov

        by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, direction in enumerate(directions):
            rows, columns = direction.shape
            by_shape[min(rows, columns), max(rows, columns)].append(index)
        for members in by_shape.values():
            wide = [directions[i] if directions[i].shape[0] <= directions[i].shape[1] else directions[i].mT for i in members]
            for i, flat in zip(members, orthogonalise(torch.stack(wide), dtype=self.dtype).float().unbind(0), strict=True):
                directions[i] = flat if directions[i].shape[0] <= directions[i].shape[1] else flat.mT

        weights: list[Tensor] = [self.parameters[n] for n in names]
        rates = [rate * self.factors[n] for n in names]
        decays = [self.decay[n] for n in names]
        if any(decays):
            torch._foreach_mul_(weights, [1.0 - r * decay for r, decay in zip(rates, decays, strict=True)])
        shape_factor = [max(1.0, w.shape[0] / w.shape[1]) ** 0.5 for w in weights]
        torch._foreach_mul_(directions, [-r * f for r, f in zip(rates, shape_factor, strict=True)])
        torch._foreach_add_(weights, directions)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.buffers)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if set(state) != set(self.buffers):
            raise RunError(
                f"the optimizer state holds other matrices than the stage trains: {sorted(set(state) ^ set(self.buffers))}"
            )
        for name, buffer in self.buffers.items():
            buffer.copy_(state[name])
