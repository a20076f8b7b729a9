"""Feed-forward layers and their activations."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from weft.core.errors import unknown_name
from weft.layers.linear import Linear


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI CLIP's approximation x * sigmoid(1.702 x), as silu(1.702 x) / 1.702: a gradient keeps one tensor, not two."""
    scaled = x * 1.702
    return F.silu(scaled, inplace=not scaled.requires_grad).mul_(1 / 1.702)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in its tanh approximation."""
    return F.gelu(x, approximate="tanh")


def squared_relu(x: Tensor) -> Tensor:
    """relu(x)**2, arXiv:2109.08668."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
    "squared_relu": squared_relu,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation of a name; ConfigError names the nearest ones."""
    if name not in ACTIVATIONS:
        raise unknown_name("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]


class FeedForward(nn.Module):
    """Linear, activation, linear. Shapes: [B, T, D] -> [B, T, D]."""

    def __init__(self, width: int, hidden_width: int, activation_name: str = "gelu", bias: bool = True) -> None:
        super().__init__()
        self.up = Linear(width, hidden_width, bias=bias)
        self.down = Linear(hidden_width, width, bias=bias)
        self.activation = activation(activation_name)
        self.routes = nn.ModuleDict()

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down(self.activation(self.up(hidden)))


class GatedFeedForward(nn.Module):
    """SwiGLU-type feed-forward (arXiv:2002.05202). Shapes: [B, T, D] -> [B, T, D]."""

    def __init__(self, width: int, hidden_width: int, activation_name: str = "silu", bias: bool = False) -> None:
        super().__init__()
        self.gate = Linear(width, hidden_width, bias=bias)
        self.up = Linear(width, hidden_width, bias=bias)
        self.down: nn.Module = Linear(hidden_width, width, bias=bias)
        self.activation = activation(activation_name)
        self.routes = nn.ModuleDict()

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down(self.activation(self.gate(hidden)) * self.up(hidden))
