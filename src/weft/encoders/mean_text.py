"""A small text tower that averages its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn

from weft.core.attention_rule import AttentionRule
from weft.core.batch import TextSide
from weft.core.interfaces import TextEncoder
from weft.layers.single_texts import check_single_texts
from weft.layers.slots import BlockContext
from weft.layers.transformer import pre_norm_blocks, run_blocks


class MeanText(TextEncoder):
    """A bidirectional transformer whose pooled vector is the mean over a text's tokens.

    A mean speaks of every word from the first step on, where a tower pooled at one position must first learn to gather them:
    what a tower trained for a minute on short phrases needs.

    Shapes: text [B, T], one text a row -> [B, C]. Source: mean pooling as in Sentence-BERT, arXiv:1908.10084.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(TextEncoder.Config):
        vocabulary: int = 512
        context: int = 16
        width: int = 128
        num_layers: int = 2
        num_heads: int = 2
        feed_forward_width: int = 384
        activation: str = "gelu"
        norm_eps: float = 1e-6

        def build(self) -> MeanText:
            return MeanText(self)

        @property
        def output_width(self) -> int:
            return self.width

        @classmethod
        def tiny(cls) -> Self:
            return cls(vocabulary=96, context=32, width=64, num_layers=1, num_heads=2, feed_forward_width=128)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        c = config
        self.token_embedding = nn.Embedding(c.vocabulary, c.width)
        self.position_embedding = nn.Embedding(c.context, c.width)
        self.blocks = pre_norm_blocks(c.width, c.num_layers, c.num_heads, c.feed_forward_width, c.activation, c.norm_eps)
        self.final_norm = nn.LayerNorm(c.width, eps=c.norm_eps)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, text: TextSide) -> Tensor:
        check_single_texts(text, self.config.context, type(self).__name__)
        hidden = self.token_embedding(text.tokens) + self.position_embedding(text.positions)
        rows, length = text.tokens.shape
        rule = AttentionRule.bidirectional(rows, length, text.tokens.device, text.segment > 0)
        hidden = self.final_norm(run_blocks(self.blocks, hidden, BlockContext(rule)))
        real = (text.segment > 0).unsqueeze(-1).to(hidden)
        return (hidden * real).sum(1) / real.sum(1).clamp_min(1)
