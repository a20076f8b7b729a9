"""MPT: a decoder without positions in its tokens and without biases; distance lowers the scores of attention.

Source: MPT-7B and MPT-30B of MosaicML; ALiBi, arXiv:2108.12409.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self

from torch import Tensor, nn

from weft.core.cache import Cache
from weft.core.errors import ConfigError
from weft.core.interfaces import LanguageModel
from weft.core.sequence import TokenSequence
from weft.layers.alibi import Alibi
from weft.layers.attention import Attention
from weft.layers.block import PreNormBlock
from weft.layers.bounded_projection import BoundedProjection
from weft.layers.feed_forward import FeedForward
from weft.layers.initialisation import initialise_normal
from weft.layers.precision import working_precision
from weft.layers.slots import BlockContext


class Mpt(LanguageModel):
    """A causal decoder with linear score biases, layer norms without biases, a feed-forward of four widths and a tied head.

    Shapes: embeddings [B, T, D] -> hidden [B, T, D]; head [.., D] -> [.., V].
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(LanguageModel.Config):
        """`clip`: bound of queries, keys and values. `query_key_norm`: layer norms over all heads' queries, and keys, as one.
        `bias_exponent`: the last head's bias falls by 2 to the power of minus this a token."""

        vocabulary: int = 50_432
        width: int = 4096
        num_layers: int = 32
        num_heads: int = 32
        context: int = 2048
        clip: float | None = None
        query_key_norm: bool = False
        bias_exponent: int = 8
        norm_eps: float = 1e-5

        def __post_init__(self) -> None:
            if self.width % self.num_heads:
                raise ConfigError(
                    f"width {self.width} does not split into {self.num_heads} heads; choose a number of heads that divides it"
                )

        def build(self) -> Mpt:
            return Mpt(self)

        @property
        def output_width(self) -> int:
            return self.width

        @classmethod
        def tiny(cls) -> Self:
            return cls(vocabulary=96, width=48, num_layers=2, num_heads=6, context=256, clip=2.0, query_key_norm=True)

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            return {
                "mpt-1b-redpajama-200b": cls(
                    vocabulary=50_368, width=2048, num_layers=24, num_heads=16, query_key_norm=True
                ),
                "mpt-7b": cls(),
                "mpt-7b-storywriter": cls(context=65_536, clip=6.0, bias_exponent=16),
                "mpt-30b": cls(width=7168, num_layers=48, num_heads=64, context=8192),
            }  # fmt: skip

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        c, width = config, config.width
        self.embedding = nn.Embedding(c.vocabulary, width)
        self.alibi = Alibi(c.num_heads, c.bias_exponent)
        self.blocks = nn.ModuleList(
            PreNormBlock(
                self._norm(c), self._attention(c, layer), self._norm(c), FeedForward(width, 4 * width, "gelu", bias=False)
            )
            for layer in range(c.num_layers)
        )
        self.final_norm = self._norm(c)
        self.output = nn.Linear(width, c.vocabulary, bias=False)
        self.output.weight = self.embedding.weight
        initialise_normal(self)

    @staticmethod
    def _norm(c: Config) -> nn.Module:
        return nn.LayerNorm(c.width, eps=c.norm_eps, bias=False)

    @classmethod
    def _attention(cls, c: Config, layer: int) -> Attention:
        attention = Attention(c.width, c.num_heads, layer=layer, input_bias=False, output_bias=False)
        if c.clip is not None or c.query_key_norm:
            norms = [cls._norm(c) if c.query_key_norm else None for _ in range(2)]
            attention.query, attention.key = (BoundedProjection(c.width, c.width, c.clip, norm) for norm in norms)
            attention.value = BoundedProjection(c.width, c.width, c.clip)
        return attention

    def embed(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens)

    def forward(
        self, sequence: TokenSequence, cache: Cache | None = None, start: int = 0, stop: int | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        stop = len(self.blocks) if stop is None else stop
        rule = sequence.rule.with_score_bias(self.alibi)
        context = BlockContext(rule, modality=sequence.modality, cache=cache, routing=sequence.routing)
        hidden, memory = working_precision(sequence.embeddings), sequence.memory
        for block in islice(self.blocks, start, stop):
            hidden, memory = block(hidden, memory, context)
        if stop == len(self.blocks):
            hidden = self.final_norm(hidden)
        return hidden, memory

    def head(self, hidden: Tensor) -> Tensor:
        return self.output(hidden)
