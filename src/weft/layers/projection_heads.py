"""Heads that map a tower's pooled vector into the space where two towers meet."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from weft.core.errors import ConfigError

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

    In training each value of the second term is lost with probability `dropout`, 0.5 as published.

    Source: Microsoft's CLAP, arXiv:2206.04769.
    """

    def __init__(self, input_width: int, output_width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(input_width, output_width, bias=False)
        self.second = nn.Linear(output_width, output_width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(output_width)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        return self.norm(first + self.dropout(self.second(F.gelu(first))))


def projection_head(kind: HeadKind, input_width: int, output_width: int | None, dropout: float = 0.0) -> nn.Module:
    """The head of a kind; without an output width what is pooled stays as it is.

    Raises: ConfigError for dropout in a head that has none.
    """
    if output_width is None:
        return nn.Identity()
    if kind == "residual":
        return ResidualHead(input_width, output_width, dropout)
    if dropout:
        raise ConfigError(f"a two_layer head has no dropout, got head_dropout={dropout}; set it to 0 or take a residual head")
    return TwoLayerHead(input_width, output_width)
