"""BERT and RoBERTa as the text tower of a dual encoder, arXiv:1810.04805 and arXiv:1907.11692."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from weft.core.attention_rule import AttentionRule
from weft.core.batch import TextSide
from weft.core.interfaces import TextEncoder
from weft.layers.branch_dropping import checked_rate
from weft.layers.initialisation import initialise_normal
from weft.layers.post_norm_block import post_norm_blocks
from weft.layers.projection_heads import HeadKind, projection_head
from weft.layers.single_texts import check_single_texts
from weft.layers.slots import BlockContext
from weft.layers.transformer import run_blocks


class BertText(TextEncoder):
    """A bidirectional post-norm transformer, pooled at the first token of the text, and a head where the family has one.

    RoBERTa differs in its sizes and in that its positions count from 2 (`first_position`): the two rows before stood for
    padding.

    Shapes: text [B, T], one text a row -> [B, E]. Source: arXiv:1810.04805, arXiv:1907.11692; as a tower of CLAP
    arXiv:2206.04769 (BERT, its first token as it is) and arXiv:2211.06687 (RoBERTa, its first token through `pooler`).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(TextEncoder.Config):
        """`pooler`: the first token goes through a linear layer and tanh before the head. `embedding_width` None: no head. In
        training `dropout` is that of the embeddings, of attention's probabilities and of what the blocks add, `head_dropout`
        that of a residual head."""

        vocabulary: int = 30_522  # type: ignore[assignment]  # a field serves the interface's property
        context: int = 512
        first_position: int = 0
        num_text_types: int = 2
        width: int = 768
        num_layers: int = 12
        num_heads: int = 12
        feed_forward_width: int = 3072
        activation: str = "gelu"
        pooler: bool = True
        embedding_width: int | None = None
        head: HeadKind = "two_layer"
        norm_eps: float = 1e-12
        dropout: float = 0.1
        head_dropout: float = 0.0

        def __post_init__(self) -> None:
            checked_rate(self.dropout, "dropout")
            checked_rate(self.head_dropout, "head_dropout")

        def build(self) -> BertText:
            return BertText(self)

        @property
        def output_width(self) -> int:
            return self.width if self.embedding_width is None else self.embedding_width

        @property
        def omitted(self) -> Mapping[str, int]:
            return {} if self.pooler else {"pooler": (self.width + 1) * self.width}

        @classmethod
        def tiny(cls) -> Self:
            return cls(vocabulary=96, context=32, width=32, num_layers=2, num_heads=2, feed_forward_width=64, dropout=0.0)

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            roberta: dict[str, Any] = {"vocabulary": 50_265, "first_position": 2, "num_text_types": 1}
            return {
                "bert-base-uncased": cls(),
                "clap-microsoft": cls(pooler=False, embedding_width=1024, head="residual", head_dropout=0.5),
                "clap-laion": cls(**roberta, embedding_width=512),
            }

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        c = config
        self.token_embedding = nn.Embedding(c.vocabulary, c.width)
        self.position_embedding = nn.Embedding(c.first_position + c.context, c.width)
        self.type_embedding = nn.Embedding(c.num_text_types, c.width)
        self.input_norm = nn.LayerNorm(c.width, eps=c.norm_eps)
        self.dropout = nn.Dropout(c.dropout)
        self.blocks = post_norm_blocks(
            c.width, c.num_layers, c.num_heads, c.feed_forward_width, c.activation, c.norm_eps, c.dropout
        )
        self.pooler = nn.Linear(c.width, c.width) if c.pooler else None
        initialise_normal(self)
        # the published code starts heads as PyTorch does
        self.head = projection_head(c.head, c.width, c.embedding_width, c.head_dropout)

    def forward(self, text: TextSide) -> Tensor:
        check_single_texts(text, self.config.context, type(self).__name__)
        real = text.segment > 0
        places = self.position_embedding(text.positions + self.config.first_position)
        # a text alone is of the first type; the second is that of the second text of a pair
        hidden = self.dropout(self.input_norm(self.token_embedding(text.tokens) + places + self.type_embedding.weight[0]))
        rows, length = text.tokens.shape
        rule = AttentionRule.bidirectional(rows, length, text.tokens.device, real)
        hidden = run_blocks(self.blocks, hidden, BlockContext(rule))
        first = hidden[torch.arange(len(hidden), device=hidden.device), real.int().argmax(1)]
        return self.head(first if self.pooler is None else torch.tanh(self.pooler(first)))
