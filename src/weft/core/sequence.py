"""The embedded sequence that flows through a language model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from weft.core.attention_rule import AttentionRule
from weft.core.routing import Routing


@dataclass(frozen=True)
class TokenSequence:
    """Embeddings and everything that blocks may ask of their tokens.

    Shapes: `embeddings` [B, T, D], `positions` [B, T], `modality` [B, T] (0 is text); `visible` [B, T, 2] by stream as in
    `TextSide`; `memory` by name, for cross-attention a `weft.core.memory.Memory`.
    """

    embeddings: Tensor
    positions: Tensor
    rule: AttentionRule
    modality: Tensor
    memory: dict[str, Any] = field(default_factory=dict)
    visible: dict[str, Tensor] = field(default_factory=dict)
    routing: Routing | None = None  # None: every token through the layers themselves
