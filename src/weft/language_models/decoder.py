"""The Llama-type decoder: Llama 1 to 3, Vicuna, Mistral, DeepSeek-LLM, InternLM2, Qwen 1 to 3.

Source: LLaMA, arXiv:2302.13971; Llama 3, arXiv:2407.21783; Mistral, arXiv:2310.06825; DeepSeek LLM, arXiv:2401.02954;
InternLM2, arXiv:2403.17297; Qwen, arXiv:2309.16609; Qwen2, arXiv:2407.10671; Qwen3, arXiv:2505.09388.
"""

from __future__ import annotations

import math
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
from weft.layers.feed_forward import GatedFeedForward
from weft.layers.initialisation import initialise_normal
from weft.layers.norms import RMSNorm
from weft.layers.precision import working_precision
from weft.layers.rotary import DynamicScaling, LinearScaling, Llama3Scaling, QwenScaling, Rotary, RotaryScaling
from weft.layers.slots import BlockContext


class Decoder(LanguageModel):
    """A causal decoder with RMS norms, rotary positions, grouped heads and a gated feed-forward.

    Shapes: embeddings [B, T, D] -> hidden [B, T, D]; head [.., D] -> [.., V].
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(LanguageModel.Config):
        """`window`: a token sees that many positions, its own and those before. `log_scaling_context`: queries at later places
        than this are multiplied by the logarithm of their place to this base, as in Qwen 1."""

        vocabulary: int = 32_000
        width: int = 4096
        num_layers: int = 32
        num_heads: int = 32
        num_key_value_heads: int = 32
        head_width: int | None = None
        feed_forward_width: int = 11_008
        context: int = 2048
        rope_theta: float = 10_000.0
        rope_scaling: RotaryScaling | None = None
        window: int | None = None
        log_scaling_context: int | None = None
        norm_eps: float = 1e-5
        attention_bias: bool = False
        head_norm: bool = False
        tied_head: bool = False

        def __post_init__(self) -> None:
            counts = ("vocabulary", "width", "num_layers", "num_heads", "num_key_value_heads", "feed_forward_width", "context")
            if small := [f"{name}={getattr(self, name)}" for name in counts if getattr(self, name) < 1]:
                raise ConfigError(f"a decoder needs counts and widths of at least 1, got {', '.join(small)}")
            if self.window is not None and self.window < 1:
                raise ConfigError(f"a token sees at least itself, got window={self.window}; None lets it see all before it")
            if self.log_scaling_context is not None and self.log_scaling_context < 2:
                raise ConfigError(
                    f"log_scaling_context is the base of a logarithm and at least 2, got {self.log_scaling_context}"
                )
            if self.num_heads % self.num_key_value_heads:
                raise ConfigError(
                    f"{self.num_heads} heads cannot share {self.num_key_value_heads} heads of keys and values evenly; "
                    "set num_key_value_heads to a divisor of num_heads"
                )
            head_width = self.head_width or self.width / self.num_heads
            if head_width % 2:
                raise ConfigError(
                    f"width {self.width} and {self.num_heads} heads give heads of {head_width:g}; rotary positions need an "
                    "even width per head, so change width or num_heads, or set head_width"
                )

        def build(self) -> Decoder:
            return Decoder(self)

        @property
        def output_width(self) -> int:
            return self.width

        @classmethod
        def tiny(cls) -> Self:
            return cls(
                vocabulary=96, width=64, num_layers=2, num_heads=4, num_key_value_heads=2, feed_forward_width=128, context=256
            )

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            llama_13b: dict[str, Any] = {
                "width": 5120,
                "num_layers": 40,
                "num_heads": 40,
                "num_key_value_heads": 40,
                "feed_forward_width": 13_824,
            }
            llama_3: dict[str, Any] = {"vocabulary": 128_256, "context": 131_072, "rope_theta": 500_000.0}
            mistral: dict[str, Any] = {"num_key_value_heads": 8, "feed_forward_width": 14_336, "context": 32_768}
            deepseek: dict[str, Any] = {"vocabulary": 102_400, "norm_eps": 1e-6}
            internlm2: dict[str, Any] = {
                "vocabulary": 92_544,
                "num_key_value_heads": 8,
                "context": 32_768,
                "rope_theta": 1e6,
                "rope_scaling": DynamicScaling(),
            }
            qwen: dict[str, Any] = {"rope_theta": 1e6, "norm_eps": 1e-6, "context": 32_768}
            return {
                "llama-7b": cls(norm_eps=1e-6),
                "llama-13b": cls(norm_eps=1e-6, **llama_13b),
                "vicuna-7b-v1.5": cls(context=4096),
                "vicuna-13b-v1.5": cls(context=4096, **llama_13b),
                "vicuna-7b-v1.5-16k": cls(context=16_384, rope_scaling=LinearScaling()),
                "llama-3.1-8b": cls(
                    num_key_value_heads=8, feed_forward_width=14_336, rope_scaling=Llama3Scaling(), **llama_3
                ),
                "llama-3.2-1b": cls(
                    width=2048, num_layers=16, num_heads=32, num_key_value_heads=8, head_width=64, feed_forward_width=8192,
                    rope_scaling=Llama3Scaling(factor=32.0), tied_head=True, **llama_3,
                ),
                "mistral-7b-v0.1": cls(window=4096, **mistral),
                "mistral-7b-v0.2": cls(rope_theta=1e6, **mistral),
                "deepseek-llm-1.3b": cls(
                    width=2048, num_layers=24, num_heads=16, num_key_value_heads=16, feed_forward_width=5632, context=16_384,
                    **deepseek,
                ),
                "deepseek-llm-7b": cls(num_layers=30, context=4096, **deepseek),
                "internlm2-1.8b": cls(width=2048, num_layers=24, num_heads=16, feed_forward_width=8192, **internlm2),
                "internlm2-7b": cls(feed_forward_width=14_336, **internlm2),
                "internlm2-20b": cls(width=6144, num_layers=48, num_heads=48, feed_forward_width=16_384, **internlm2),
                "qwen-7b": cls(
                    vocabulary=151_936, context=8192, norm_eps=1e-6, attention_bias=True,
                    rope_scaling=QwenScaling(), log_scaling_context=8192,
                ),
                "qwen2.5-0.5b": cls(
                    vocabulary=151_936, width=896, num_layers=24, num_heads=14, num_key_value_heads=2,
                    feed_forward_width=4864, attention_bias=True, tied_head=True, **qwen,
                ),
                "qwen2.5-7b": cls(
                    vocabulary=152_064, width=3584, num_layers=28, num_heads=28, num_key_value_heads=4,
                    feed_forward_width=18_944, attention_bias=True, **qwen,
                ),
                "qwen3-0.6b": cls(
                    vocabulary=151_936, width=1024, num_layers=28, num_heads=16, num_key_value_heads=8, head_width=128,
                    feed_forward_width=3072, head_norm=True, tied_head=True, **(qwen | {"context": 40_960}),
                ),
            }  # fmt: skip

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        c, width = config, config.width
        head_width = c.head_width or width // c.num_heads
        self.embedding = nn.Embedding(c.vocabulary, width)
        self.rotary = Rotary(head_width, c.rope_theta, c.rope_scaling, c.context)

        def head_norm(size: int) -> nn.Module:
            return RMSNorm(size, c.norm_eps)

        self.blocks = nn.ModuleList(
            PreNormBlock(
                RMSNorm(width, c.norm_eps),
                Attention(
                    width, c.num_heads, c.num_key_value_heads, head_width, layer=layer,
                    input_bias=c.attention_bias, output_bias=False, head_norm=head_norm if c.head_norm else None,
                ),
                RMSNorm(width, c.norm_eps),
                GatedFeedForward(width, c.feed_forward_width),
            )
            for layer in range(c.num_layers)
        )  # fmt: skip
        self.final_norm = RMSNorm(width, c.norm_eps)
        self.output = nn.Linear(width, c.vocabulary, bias=False)
        if c.tied_head:
            self.output.weight = self.embedding.weight
        initialise_normal(self)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens)

    def forward(
        self, sequence: TokenSequence, cache: Cache | None = None, start: int = 0, stop: int | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        blocks, depth = self.blocks, len(self.blocks)
        context = self._context(sequence, cache)
        hidden, memory = working_precision(sequence.embeddings), sequence.memory
        for block in islice(blocks, start, stop):  # a slice would build a ModuleList on every call
            hidden, memory = block(hidden, memory, context)
        if stop is None or stop == depth:
            hidden = self.final_norm(hidden)
        return hidden, memory

    def last_hidden(self, sequence: TokenSequence, last: Tensor, cache: Cache | None = None) -> Tensor:
        block = self.blocks[-1]
        assert isinstance(block, PreNormBlock)
        if not block.bare:
            return super().last_hidden(sequence, last, cache)
        hidden, _ = self(sequence, cache, stop=len(self.blocks) - 1)
        return self.final_norm(block.last(hidden, self._context(sequence, cache), last)).squeeze(1)

    def _context(self, sequence: TokenSequence, cache: Cache | None) -> BlockContext:
        rule, positions, trained = sequence.rule, sequence.positions, self.config.log_scaling_context
        rule = rule if self.config.window is None else rule.with_window(self.config.window)
        scale = None
        if trained is not None:
            scale = ((positions + 1).float().log() / math.log(trained)).clamp_min(1.0)[:, None, :, None]
        return BlockContext(rule, self.rotary(positions), sequence.modality, cache, query_scale=scale, routing=sequence.routing)

    def head(self, hidden: Tensor) -> Tensor:
        return self.output(hidden)
