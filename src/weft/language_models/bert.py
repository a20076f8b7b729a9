"""BERT as a language model: everyone sees everyone, and the head says what stands at a masked place.

Source: arXiv:1810.04805.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self

from torch import Tensor, nn

from weft.core.cache import Cache
from weft.core.interfaces import LanguageModel
from weft.core.sequence import TokenSequence
from weft.layers.feed_forward import activation
from weft.layers.initialisation import initialise_normal
from weft.layers.post_norm_block import post_norm_blocks
from weft.layers.precision import working_precision
from weft.layers.slots import BlockContext


class Bert(LanguageModel):
    """Post-norm blocks over learned positions; who sees whom is the rule's to say, so it also reads from left to right.

    Positions are added on the way into the first block, so that media tokens get theirs as words do; all tokens are of the
    first type. Dropout, 0.1 in the published training, is left out.

    Shapes: embeddings [B, T, D] -> hidden [B, T, D]; head [.., D] -> [.., V].
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(LanguageModel.Config):
        vocabulary: int = 30_522  # type: ignore[assignment]  # a field serves the interface's property
        context: int = 512  # type: ignore[assignment]
        num_text_types: int = 2
        width: int = 768
        num_layers: int = 12
        num_heads: int = 12
        feed_forward_width: int = 3072
        activation: str = "gelu"
        norm_eps: float = 1e-12

        def build(self) -> Bert:
            return Bert(self)

        @property
        def output_width(self) -> int:
            return self.width

        @classmethod
        def tiny(cls) -> Self:
            return cls(vocabulary=96, context=256, width=32, num_layers=2, num_heads=2, feed_forward_width=64)

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            large: dict[str, Any] = {"width": 1024, "num_layers": 24, "num_heads": 16, "feed_forward_width": 4096}
            return {
                "bert-base-uncased": cls(),
                "bert-base-cased": cls(vocabulary=28_996),
                "bert-large-uncased": cls(**large),
                "bert-large-cased": cls(vocabulary=28_996, **large),
            }

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        c = config
        self.token_embedding = nn.Embedding(c.vocabulary, c.width)
        self.position_embedding = nn.Embedding(c.context, c.width)
        self.type_embedding = nn.Embedding(c.num_text_types, c.width)
        self.input_norm = nn.LayerNorm(c.width, eps=c.norm_eps)
        self.blocks = post_norm_blocks(c.width, c.num_layers, c.num_heads, c.feed_forward_width, c.activation, c.norm_eps)
        self.head_transform = nn.Linear(c.width, c.width)
        self.head_activation = activation(c.activation)
        self.head_norm = nn.LayerNorm(c.width, eps=c.norm_eps)
        self.output = nn.Linear(c.width, c.vocabulary)
        self.output.weight = self.token_embedding.weight
        initialise_normal(self)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.token_embedding(tokens)

    def forward(
        self, sequence: TokenSequence, cache: Cache | None = None, start: int = 0, stop: int | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        stop = len(self.blocks) if stop is None else stop
        context = BlockContext(sequence.rule, modality=sequence.modality, cache=cache, routing=sequence.routing)
        hidden, memory = sequence.embeddings, sequence.memory
        if start == 0:
            hidden = self.input_norm(hidden + self.position_embedding(sequence.positions) + self.type_embedding.weight[0])
        hidden = working_precision(hidden)
        for block in islice(self.blocks, start, stop):
            hidden, memory = block(hidden, memory, context)
        return hidden, memory

    def head(self, hidden: Tensor) -> Tensor:
        return self.output(self.head_norm(self.head_activation(self.head_transform(hidden))))
