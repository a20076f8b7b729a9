"""Adaptive gradient clipping: each unit's gradient in proportion to the unit's own weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from weft.core.errors import ConfigError
from weft.training.freezing import select_names

SMALLEST_NORM = 1e-3  # of a unit's weights, so that one that starts at zero can move


class AdaptiveClipping:
    """Scales a unit's gradient down where its norm is over `factor` times the norm of the unit's weights.

    A unit is one output of a matrix or of a convolution: all the weights that lead to it. A vector or scalar is one unit, as is
    a weight with a single axis longer than one. `excluded` lists name patterns (`fnmatch`) of parameters to leave alone: the
    published choice is the final linear layer. No state is kept, so a resumed run goes on as if it had never stopped.

    Raises: ConfigError for a factor that is not positive, and for a pattern that matches no trained parameter.
    Source: arXiv:2102.06171; its factor for batches of 4096 is 0.01.
    """

    def __init__(self, trained: Mapping[str, nn.Parameter], factor: float, excluded: Sequence[str] = ()) -> None:
        if not factor > 0:
            raise ConfigError(f"optimizer.adaptive_clip is a positive factor, got {factor}; None turns it off")
        left_alone = set(select_names(trained, excluded, "optimizer.adaptive_clip_except"))
        self.factor = factor
        self.parameters = [parameter for name, parameter in trained.items() if name not in left_alone]

    @torch.no_grad()
    def clip(self) -> None:
        """Change the gradients in place; one within its bound keeps every bit."""
        pairs = [(p, p.grad) for p in self.parameters if p.grad is not None]
        if not pairs:
            return
        bounds = [unit_norms(parameter) for parameter, _ in pairs]
        torch._foreach_clamp_min_(bounds, SMALLEST_NORM)
        torch._foreach_mul_(bounds, self.factor)
        norms = [unit_norms(gradient) for _, gradient in pairs]
        torch._foreach_maximum_(norms, bounds)
        torch._foreach_div_(bounds, norms)  # a bound divided by itself is exactly 1
        torch._foreach_mul_([gradient for _, gradient in pairs], bounds)


def unit_norms(tensor: Tensor) -> Tensor:
    """The Euclidean norm of each unit in float32, shaped to multiply with the tensor: [R, 1, ...], or [] for a whole."""
    if sum(side > 1 for side in tensor.shape) <= 1:
        return torch.linalg.vector_norm(tensor, dtype=torch.float32)
    return torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.ndim)), keepdim=True, dtype=torch.float32)
