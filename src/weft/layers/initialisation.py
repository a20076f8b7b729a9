"""How models start that are trained from nothing."""

from __future__ import annotations

from torch import nn


def initialise_normal(model: nn.Module, deviation: float = 0.02) -> None:
    """Normal draws for every matrix and table, biases at zero: the start of GPT-2, BERT and most that came after."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=deviation)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
