"""The Q-Former of BLIP-2 and, reading the instruction, of InstructBLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import nn

from weft.core.errors import ConfigError
from weft.core.interfaces import InputProjector
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures, MediaTokens
from weft.layers.query_transformer import QueryTransformer


class QFormer(InputProjector):
    """A few learned queries read each unit through a BERT of their own and become its tokens, however many features it has.

    With a `vocabulary` the tokens of the medium's instruction, where it has one, stand beside the queries in self-attention, so
    what is read depends on what was asked; only the queries leave. A medium without instruction is read as by BLIP-2. Dropout
    acts in training alone, at BERT's rate.

    Shapes: features (N, L, C) with instructions (items, T) -> tokens (N * num_queries, D).
    Source: BLIP-2, arXiv:2301.12597; with instructions InstructBLIP, arXiv:2305.06500.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(InputProjector.Config):
        """`vocabulary` is that of the instruction's tokenizer, not of the language model; `context` its longest text. Without
        `projected` the queries keep their width, as in BLIP-2's first stage, which has no language model yet."""

        num_queries: int = 32
        width: int = 768
        num_layers: int = 12
        num_heads: int = 12
        feed_forward_width: int = 3072
        cross_attention_every: int = 2
        vocabulary: int | None = None
        context: int = 512
        activation: str = "gelu"
        norm_eps: float = 1e-12
        dropout: float = 0.1
        projected: bool = True

        def build(self, input_width: int, output_width: int) -> QFormer:
            if not self.projected and output_width != self.width:
                raise ConfigError(
                    f"a Q-Former that is not projected gives tokens of its width {self.width}, {output_width} are needed; set "
                    "projected=True"
                )
            return QFormer(self, input_width, output_width)

        def num_tokens(self, layout: MediaLayout) -> int:
            return self.num_queries * layout.num_units

        @property
        def keeps_places(self) -> bool:
            return False

        @property
        def instruction_vocabulary(self) -> int | None:
            return self.vocabulary

        @classmethod
        def tiny(cls) -> Self:
            return cls(num_queries=4, width=32, num_layers=2, num_heads=2, feed_forward_width=48, dropout=0.0)

    def __init__(self, config: Config, input_width: int, output_width: int) -> None:
        super().__init__()
        self.config = config
        c = config
        self.transformer = QueryTransformer(
            c.num_queries, c.width, c.num_layers, c.num_heads, c.feed_forward_width, input_width,
            cross_attention_every=c.cross_attention_every, vocabulary=c.vocabulary, context=c.context,
            activation=c.activation, norm_eps=c.norm_eps, dropout=c.dropout,
        )  # fmt: skip
        self.output = nn.Linear(c.width, output_width) if c.projected else nn.Identity()

    def forward(self, features: MediaFeatures) -> MediaTokens:
        text = None
        if self.config.vocabulary is not None and features.instruction is not None:
            text = features.instruction[features.unit_item]
        hidden = self.transformer(features, text)
        return MediaTokens.from_units(self.output(hidden[:, : self.config.num_queries]), features)
