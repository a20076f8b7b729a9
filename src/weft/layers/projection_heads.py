"""Heads that map a tower's pooled vector into the space where two towers meet."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

HeadKind = Literal["two_layer", "residual"]


class TwoLayerHead(nn.Module):
    """Linear, ReLU, linear. Shapes: [N, C] -> [N, E]. Source: LAION's CLAP, arXiv:2211.06687."""

    def __init__(self, input_width: int, output_width: int) -> None:
        super().__init__()
        self.first = nn.Linear(input_width, output_width)
        self.second = nn.Linear(output_width, output_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


class ResidualHead(nn.Module):
    """norm(a + B gelu(a)) with a = A x, no biases. Shapes: [N, C] -> [N, E].

    Dropout, 0.5 before the sum in the published training, is left out: what it does in evaluation mode is nothing.

    Source: Microsoft's CLAP, arXiv:2206.04769.
    """

    def __init__(self, input_width: int, output_width: int) -> None:
        super().__init__()
        self.first = nn.Linear(input_width, output_width, bias=False)
        self.second = nn.Linear(output_width, output_width, bias=False)
        self.norm = nn.LayerNorm(output_width)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        return self.norm(first + self.second(F.gelu(first)))


def projection_head(kind: HeadKind, input_width: int, output_width: int | None) -> nn.Module:
    """The head of a kind; without an output width what is pooled stays as it is."""
    if output_width is None:
        return nn.Identity()
    return (TwoLayerHead if kind == "two_layer" else ResidualHead)(input_width, output_width)
