"""Rows for tokens that a language model was not made with, so that its own tables stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weft.core import config
from weft.core.errors import ConfigError


class AddedTokens(nn.Module):
    """Small tables of their own for the ids behind a vocabulary of V: rows that are read, and rows that are said.

    A model may read tokens that it never says (a picture's tag). `tied` makes both tables one.

    Shapes: tokens [B, T] -> [B, T, D]; hidden [.., D] -> logits [.., V + num_outputs].
    Source: OpenFlamingo, arXiv:2308.01390, which trains two rows; IDEFICS, arXiv:2306.16527, which adds two of either kind.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config):
        num_inputs: int = 2
        num_outputs: int = 2
        tied: bool = False

        def __post_init__(self) -> None:
            if self.num_inputs < 1 or not 0 <= self.num_outputs <= self.num_inputs:
                raise ConfigError(f"what a model says it must also read: {self.num_inputs} inputs, {self.num_outputs} outputs")
            if self.tied and self.num_outputs != self.num_inputs:
                raise ConfigError(f"tied tables are one: {self.num_inputs} inputs, {self.num_outputs} outputs")

        def build(self, vocabulary: int, width: int) -> AddedTokens:
            return AddedTokens(self, vocabulary, width)

    def __init__(self, config: Config, vocabulary: int, width: int) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        self.inputs = nn.Embedding(config.num_inputs, width)
        self.outputs = nn.Linear(width, config.num_outputs, bias=False) if config.num_outputs else None
        nn.init.normal_(self.inputs.weight, std=0.02)
        if self.outputs is not None:
            nn.init.normal_(self.outputs.weight, std=0.02)
            if config.tied:
                self.outputs.weight = self.inputs.weight

    def embed(self, tokens: Tensor, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """The rows of tokens, `embed` giving those of the language model."""
        added = tokens - self.vocabulary
        known = embed(tokens.clamp_max(self.vocabulary - 1))
        return torch.where((added >= 0)[..., None], self.inputs(added.clamp_min(0)).to(known.dtype), known)

    def head(self, hidden: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
        """The logits of a hidden state, `head` giving those of the language model."""
        known = head(hidden)
        return known if self.outputs is None else torch.cat((known, self.outputs(hidden).to(known.dtype)), -1)
