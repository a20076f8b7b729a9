"""What learned queries have for themselves in a block that they share with a text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from weft.layers.branch_dropping import Dropping, kept
from weft.layers.slots import BlockContext

MEDIA = "media"  # the name of what the queries look at in a block's memory


class QueryCrossAttention(nn.Module):
    """A slot: queries look at the media of their row, norm(q + attention(q, media)); the text behind them passes untouched.

    Shapes: hidden [B, K + T, D] with K = `context.num_queries`; `memory["media"]` is `MediaFeatures` of B units.
    """

    def __init__(self, attention: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.norm = norm
        self.dropping: Dropping = kept

    def forward(self, hidden: Tensor, memory: dict[str, Any], context: BlockContext) -> tuple[Tensor, dict[str, Any]]:
        if not context.num_queries:
            return hidden, memory
        media = memory[MEDIA]
        queries, text = hidden.tensor_split((context.num_queries,), 1)
        queries = self.norm(queries + self.dropping(self.attention(queries, media.values, media.valid)))
        return torch.cat((queries, text), 1), memory


class QueryTextFeedForward(nn.Module):
    """The queries of a row through one feed-forward, the text behind them through another; one without text has only the first.

    Shapes: [B, K + T, D] -> [B, K + T, D] with K = `context.num_queries`.
    """

    def __init__(self, query: nn.Module, text: nn.Module | None) -> None:
        super().__init__()
        self.query = query
        self.text = text

    def forward(self, hidden: Tensor, context: BlockContext) -> Tensor:
        queries, text = hidden.tensor_split((context.num_queries,), 1)
        if self.text is None or not text.shape[1]:
            return self.query(queries, context)
        if not queries.shape[1]:
            return self.text(text, context)
        return torch.cat((self.query(queries, context), self.text(text, context)), 1)
