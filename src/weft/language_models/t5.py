"""T5 1.1 and Flan-T5: an encoder that reads and a decoder that writes.

Source: T5, arXiv:1910.10683; gated units arXiv:2002.05202; Flan-T5, arXiv:2210.11416.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self

from torch import Tensor, nn

from weft.core.cache import Cache
from weft.core.errors import ConfigError
from weft.core.interfaces import ENCODED, EncoderDecoder, LanguageModel
from weft.core.sequence import TokenSequence
from weft.layers.attention import Attention
from weft.layers.block import PreNormBlock
from weft.layers.feed_forward import FeedForward, GatedFeedForward
from weft.layers.memory_attention import MemoryAttention
from weft.layers.memory_slot import MemorySlot
from weft.layers.norms import RMSNorm
from weft.layers.precision import working_precision
from weft.layers.relative_position_bias import RelativePositionBias
from weft.layers.slots import BlockContext
from weft.layers.unscaled_query import UnscaledQuery


class T5(EncoderDecoder):
    """Pre-norm blocks without a bias, RMS norms, and relative positions that all layers of a half share.

    The model's own `embed`, `blocks` and `forward` are those of the decoder, which looks at the hidden states of `encoder` in
    the middle slot of its blocks. Dropout, 0.1 in the published training, is left out.

    Shapes: embeddings [B, T, D] -> hidden [B, T, D]; head [.., D] -> [.., V].
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(EncoderDecoder.Config):
        """`gated`: a gated feed-forward; `tied_head`: the first T5's head, the token table itself behind hidden * D**-0.5.

        `context` bounds the decoder's text alone. Relative positions end nowhere; 512 tokens is what was trained on.
        """

        vocabulary: int = 32_128  # type: ignore[assignment]  # a field serves the interface's property
        width: int = 512
        num_layers: int = 8
        num_decoder_layers: int = 8
        num_heads: int = 6
        head_width: int = 64
        feed_forward_width: int = 1024
        context: int = 512  # type: ignore[assignment]
        num_buckets: int = 32
        max_distance: int = 128
        activation: str = "gelu_tanh"
        gated: bool = True
        tied_head: bool = False
        start_token: int = 0  # type: ignore[assignment]
        norm_eps: float = 1e-6

        def __post_init__(self) -> None:
            if self.num_buckets < 4 or self.num_buckets % 4:
                raise ConfigError(
                    f"num_buckets is {self.num_buckets}: two directions, each of near and far distances, need a multiple of 4"
                )
            if self.max_distance <= self.num_buckets // 2:
                raise ConfigError(
                    f"max_distance {self.max_distance} leaves {self.num_buckets} buckets nothing to share; set it above "
                    f"{self.num_buckets // 2}"
                )

        def build(self) -> T5:
            return T5(self)

        @property
        def output_width(self) -> int:
            return self.width

        @classmethod
        def tiny(cls) -> Self:
            return cls(
                vocabulary=96, width=32, num_layers=2, num_decoder_layers=2, num_heads=2, head_width=16,
                feed_forward_width=48, context=256, num_buckets=8, max_distance=16,
            )  # fmt: skip

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            shapes = {"base": (768, 2048, 12, 12), "large": (1024, 2816, 24, 16),
                      "xl": (2048, 5120, 24, 32), "xxl": (4096, 10_240, 24, 64)}  # fmt: skip
            return {"flan-t5-small": cls()} | {
                f"flan-t5-{name}": cls(
                    width=width, feed_forward_width=hidden, num_layers=layers, num_decoder_layers=layers, num_heads=heads
                )
                for name, (width, hidden, layers, heads) in shapes.items()
            }

    slots = ("before_attention", "after_block")  # the middle one looks at the encoder

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.encoder: LanguageModel = _Encoder(config, self.embedding)
        self.position_bias = RelativePositionBias(config.num_heads, config.num_buckets, config.max_distance, both_ways=False)
        self.blocks = _blocks(config, config.num_decoder_layers)
        for layer, block in enumerate(self.blocks):
            attention = MemoryAttention(
                config.width, config.num_heads, head_width=config.head_width, layer=layer, memory_name=ENCODED
            )
            attention.query_norm = UnscaledQuery(config.head_width)
            block.before_feed_forward = MemorySlot(RMSNorm(config.width, config.norm_eps), attention)
        self.final_norm = RMSNorm(config.width, config.norm_eps)
        self.output = nn.Linear(config.width, config.vocabulary, bias=False)
        if config.tied_head:
            self.output.weight = self.embedding.weight
        self.initialise()

    def initialise(self) -> None:
        """The published start, under which scores need no scaling.

        A head of its own starts by its inputs, as in the original code; `transformers` draws it with deviation 1, and a fresh
        model is then sure of what it cannot know.
        """
        width = self.config.width
        nn.init.normal_(self.embedding.weight)
        if not self.config.tied_head:
            nn.init.normal_(self.output.weight, std=width**-0.5)
        for module in self.modules():
            if isinstance(module, RelativePositionBias):
                nn.init.normal_(module.weight, std=width**-0.5)
            elif isinstance(module, Attention | MemoryAttention):
                nn.init.normal_(module.query.weight, std=(width * self.config.head_width) ** -0.5)
                _start_by_inputs(module.key, module.value, module.output)
            elif isinstance(module, FeedForward | GatedFeedForward):
                _start_by_inputs(*module.children())

    def embed(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens)

    def forward(
        self, sequence: TokenSequence, cache: Cache | None = None, start: int = 0, stop: int | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        return _run(self, sequence, cache, start, stop)

    def head(self, hidden: Tensor) -> Tensor:
        return self.output(hidden * self.config.width**-0.5 if self.config.tied_head else hidden)


class _Encoder(LanguageModel):
    """The half that reads: fusions are installed here. It shares the decoder's token table and has no head."""

    def __init__(self, config: T5.Config, embedding: nn.Embedding) -> None:
        super().__init__()
        self.config = config
        self.embedding = embedding
        self.position_bias = RelativePositionBias(config.num_heads, config.num_buckets, config.max_distance, both_ways=True)
        self.blocks = _blocks(config, config.num_layers)
        self.final_norm = RMSNorm(config.width, config.norm_eps)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens)

    def forward(
        self, sequence: TokenSequence, cache: Cache | None = None, start: int = 0, stop: int | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        return _run(self, sequence, cache, start, stop)

    def head(self, hidden: Tensor) -> Tensor:
        raise ConfigError("an encoder writes nothing; the head is that of the whole model")


def _start_by_inputs(*layers: nn.Module) -> None:
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)


def _blocks(config: T5.Config, num_layers: int) -> nn.ModuleList:
    c = config

    def attention(layer: int) -> Attention:
        made = Attention(c.width, c.num_heads, head_width=c.head_width, layer=layer, input_bias=False, output_bias=False)
        made.query_norm = UnscaledQuery(c.head_width)
        return made

    def feed_forward() -> nn.Module:
        kind = GatedFeedForward if c.gated else FeedForward
        return kind(c.width, c.feed_forward_width, c.activation, bias=False)

    return nn.ModuleList(
        PreNormBlock(RMSNorm(c.width, c.norm_eps), attention(layer), RMSNorm(c.width, c.norm_eps), feed_forward())
        for layer in range(num_layers)
    )


def _run(
    half: Any, sequence: TokenSequence, cache: Cache | None, start: int, stop: int | None
) -> tuple[Tensor, dict[str, Any]]:
    """`LanguageModel.forward` of one half."""
    stop = len(half.blocks) if stop is None else stop
    rule = sequence.rule.with_score_bias(half.position_bias)
    context = BlockContext(rule, modality=sequence.modality, cache=cache, routing=sequence.routing)
    hidden, memory = working_precision(sequence.embeddings), sequence.memory
    for block in islice(half.blocks, start, stop):
        hidden, memory = block(hidden, memory, context)
    if stop == len(half.blocks):
        hidden = half.final_norm(hidden)
    return hidden, memory
