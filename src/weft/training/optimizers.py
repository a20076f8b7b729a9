"""AdamW, and Muon on the matrices of hidden layers with AdamW on the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from weft.core.errors import ConfigError, RunError
from weft.training.stage import Optimizer

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
    the arithmetic. `factors` multiplies the rate by name. A parameter without a gradient is left alone for that step.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        factors: Mapping[str, float] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.parameters = dict(parameters)
        self.momentum = momentum
        self.weight_decay = weight_decay
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
        if self.weight_decay:
            torch._foreach_mul_(weights, [1.0 - r * self.weight_decay for r in rates])
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


class StageOptimizer:
    """Everything that updates the parameters of one stage, driven by one rate factor a step."""

    def __init__(
        self, config: Optimizer, trained: Mapping[str, nn.Parameter], matrices: Sequence[str], dtype: torch.dtype
    ) -> None:
        self.config = config
        self.trained = dict(trained)
        self.parameters = list(self.trained.values())
        factors = _rate_factors(config, self.trained)
        chosen = set(matrices)
        self.muon = (
            Muon(
                {n: p for n, p in self.trained.items() if n in chosen},
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                factors=factors,
                dtype=dtype,
            )
            if chosen
            else None
        )
        groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
        for name, parameter in self.trained.items():
            if name not in chosen:
                decay = config.weight_decay if parameter.ndim >= 2 else 0.0
                groups[decay, factors[name]].append(parameter)
        self.adamw = (
            torch.optim.AdamW(
                [{"params": p, "weight_decay": decay, "factor": factor} for (decay, factor), p in groups.items()],
                lr=config.learning_rate,
                betas=config.betas,
                eps=config.epsilon,
                fused=True,
            )
            if groups
            else None
        )

    def step(self, factor: float) -> None:
        """One update at `factor` times the peak rates."""
        if self.adamw is not None:
            for group in self.adamw.param_groups:
                group["lr"] = self.config.learning_rate * group["factor"] * factor
            self.adamw.step()
        if self.muon is not None:
            self.muon.step(self.config.matrix_rate * factor)

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def clip(self) -> Tensor:
        """Scale the gradients down to `clip_norm` together; returns their norm before."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip_norm, norm, foreach=True)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """The state of both optimizers; loading it resumes bit for bit."""
        return {
            "adamw": None if self.adamw is None else self.adamw.state_dict(),
            "muon": None if self.muon is None else self.muon.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises: RunError for the state of another set of parameters."""
        for name, optimizer in (("adamw", self.adamw), ("muon", self.muon)):
            if (optimizer is None) != (state[name] is None):
                raise RunError(
                    f"the checkpoint was written by another optimizer than {self.config.name!r}; resume with its recipe"
                )
            if optimizer is not None:
                try:
                    optimizer.load_state_dict(state[name])
                except ValueError as error:
                    raise RunError(f"the optimizer state does not fit what this stage trains: {error}") from None


def build_optimizer(
    config: Optimizer, system: nn.Module, trained: Mapping[str, nn.Parameter], dtype: torch.dtype = torch.float32
) -> StageOptimizer:
    """The optimizer of a stage over the parameters that it trains; `dtype` is the precision of Muon's iteration."""
    return StageOptimizer(config, trained, muon_names(config, system, trained), dtype)


def muon_names(config: Optimizer, system: nn.Module, trained: Mapping[str, nn.Parameter]) -> list[str]:
    """The parameters that Muon takes: weights of linear layers that match `matrices`; none for AdamW."""
    if config.name != "muon":
        return []
    linear = {f"{name}.weight" for name, module in system.named_modules() if isinstance(module, nn.Linear)}
    return [n for n in trained if n in linear and any(fnmatchcase(n, pattern) for pattern in config.matrices)]


def _rate_factors(config: Optimizer, trained: Mapping[str, nn.Parameter]) -> dict[str, float]:
    factors = dict.fromkeys(trained, 1.0)
    for pattern, factor in config.rates.items():
        matched = [n for n in trained if fnmatchcase(n, pattern)]
        if not matched:
            raise ConfigError(f"optimizer.rates: pattern {pattern!r} matches no trained parameter")
        for name in matched:
            factors[name] *= factor
    return factors
