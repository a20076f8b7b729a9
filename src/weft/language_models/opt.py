"""OPT: a decoder with learned positions and biases; the 350m normalises behind each half of a block, all others before.

Source: OPT, arXiv:2205.01068.
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
from weft.layers.attention import Attention
from weft.layers.block import PreNormBlock
from weft.layers.feed_forward import FeedForward
from weft.layers.initialisation import initialise_normal
from weft.layers.post_norm_block import PostNormBlock, PostNormFeedForward
from weft.layers.precision import working_precision
from weft.layers.slots import BlockContext

_OFFSET = 2  # the table's first row is never read and its second stood for padding


class Opt(LanguageModel):
    """A causal decoder with learned positions, plain attention and feed-forward, biases throughout and a tied head.

    Positions are added on the way into the first block, so that media tokens get theirs as words do. A table narrower than the
    model (`embedding_width`, the 350m) has a linear layer on its way in, inside `embed`, and one on its way out, inside `head`:
    the sequence itself is D wide everywhere.

    Shapes: embeddings [B, T, D] -> hidden [B, T, D]; head [.., D] -> [.., V].
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(LanguageModel.Config):
        """`pre_norm`: norms before each half of a block and one behind the last; otherwise behind each half."""

        vocabulary: int = 50_272
        width: int = 768
        num_layers: int = 12
        num_heads: int = 12
        feed_forward_width: int = 3072
        embedding_width: int | None = None
        context: int = 2048
        pre_norm: bool = True
        activation: str = "relu"
        norm_eps: float = 1e-5

        def __post_init__(self) -> None:
            if self.width % self.num_heads:
                raise ConfigError(
                    f"width {self.width} does not split into {self.num_heads} heads; choose a number of heads that divides it"
                )

        def build(self) -> Opt:
            return Opt(self)

        @property
        def output_width(self) -> int:
            return self.width

        @classmethod
        def tiny(cls) -> Self:
            return cls(vocabulary=96, width=64, num_layers=2, num_heads=4, feed_forward_width=128, context=256)

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            small = cls(width=1024, num_layers=24, num_heads=16, feed_forward_width=4096, embedding_width=512, pre_norm=False)
            shapes = {"1.3b": (2048, 24, 32), "2.7b": (2560, 32, 32), "6.7b": (4096, 32, 32), "13b": (5120, 40, 40),
                      "30b": (7168, 48, 56), "66b": (9216, 64, 72)}  # fmt: skip
            return {"opt-125m": cls(), "opt-350m": small} | {
                f"opt-{name}": cls(width=width, num_layers=layers, num_heads=heads, feed_forward_width=4 * width)
                for name, (width, layers, heads) in shapes.items()
            }

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        c, width = config, config.width
        narrow = c.embedding_width or width
        self.embedding = nn.Embedding(c.vocabulary, narrow)
        self.position_embedding = nn.Embedding(_OFFSET + c.context, width)
        self.input_projection = nn.Identity() if narrow == width else nn.Linear(narrow, width, bias=False)
        self.blocks = nn.ModuleList(self._block(config, layer) for layer in range(c.num_layers))
        self.final_norm = nn.LayerNorm(width, eps=c.norm_eps) if c.pre_norm else nn.Identity()
        self.output_projection = nn.Identity() if narrow == width else nn.Linear(width, narrow, bias=False)
        self.output = nn.Linear(narrow, c.vocabulary, bias=False)
        self.output.weight = self.embedding.weight
        initialise_normal(self)

    @staticmethod
    def _block(c: Config, layer: int) -> nn.Module:
        attention = Attention(c.width, c.num_heads, layer=layer)
        norm = nn.LayerNorm(c.width, eps=c.norm_eps)
        if not c.pre_norm:
            behind = PostNormFeedForward(c.width, c.feed_forward_width, c.activation, c.norm_eps)
            return PostNormBlock(attention, norm, behind)
        feed_forward = FeedForward(c.width, c.feed_forward_width, c.activation)
        return PreNormBlock(norm, attention, nn.LayerNorm(c.width, eps=c.norm_eps), feed_forward)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.input_projection(self.embedding(tokens))

    def forward(
        self, sequence: TokenSequence, cache: Cache | None = None, start: int = 0, stop: int | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        stop = len(self.blocks) if stop is None else stop
        context = BlockContext(sequence.rule, modality=sequence.modality, cache=cache, routing=sequence.routing)
        hidden, memory = sequence.embeddings, sequence.memory
        if start == 0:
            hidden = hidden + self.position_embedding(sequence.positions + _OFFSET)
        hidden = working_precision(hidden)
        for block in islice(self.blocks, start, stop):
            hidden, memory = block(hidden, memory, context)
        if stop == len(self.blocks):
            hidden = self.final_norm(hidden)
        return hidden, memory

    def head(self, hidden: Tensor) -> Tensor:
        return self.output(self.output_projection(hidden))
