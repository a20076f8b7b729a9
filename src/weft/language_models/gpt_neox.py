"""GPT-NeoX: GPT-NeoX-20B, Pythia and RedPajama-INCITE.

Source: GPT-NeoX-20B, arXiv:2204.06745; Pythia, arXiv:2304.01373; RedPajama-INCITE, arXiv:2411.12372.
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
from weft.layers.parallel_block import ParallelBlock
from weft.layers.partial_rotary import PartialRotary
from weft.layers.precision import working_precision
from weft.layers.slots import BlockContext


class GptNeox(LanguageModel):
    """A causal decoder with layer norms and biases, rotary positions in a part of each head, and a head of its own.

    Shapes: embeddings [B, T, D] -> hidden [B, T, D]; head [.., D] -> [.., V].
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(LanguageModel.Config):
        """`rotated_fraction` of each head's channels turn with the position. `parallel_residual`: attention and feed-forward
        read the same input."""

        vocabulary: int = 50_304
        width: int = 512
        num_layers: int = 6
        num_heads: int = 8
        feed_forward_width: int = 2048
        context: int = 2048
        rope_theta: float = 10_000.0
        rotated_fraction: float = 0.25
        parallel_residual: bool = True
        activation: str = "gelu"
        norm_eps: float = 1e-5
        tied_head: bool = False

        def __post_init__(self) -> None:
            if self.width % self.num_heads:
                raise ConfigError(
                    f"width {self.width} does not split into {self.num_heads} heads; choose a number of heads that divides it"
                )
            if not 0 < self.rotated_width <= self.head_width or self.rotated_width % 2 or self.head_width % 2:
                raise ConfigError(
                    f"heads of {self.head_width} channels of which {self.rotated_width} turn: both must be even, and some "
                    "must turn; change num_heads or rotated_fraction"
                )

        def build(self) -> GptNeox:
            return GptNeox(self)

        @property
        def output_width(self) -> int:
            return self.width

        @property
        def head_width(self) -> int:
            return self.width // self.num_heads

        @property
        def rotated_width(self) -> int:
            """How many channels of a head turn."""
            return int(self.head_width * self.rotated_fraction)

        @classmethod
        def tiny(cls) -> Self:
            return cls(vocabulary=96, width=64, num_layers=2, num_heads=4, feed_forward_width=128, context=256)

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            shapes = {
                "pythia-14m": (128, 6, 4, 50_304),
                "pythia-31m": (256, 6, 8, 50_304),
                "pythia-70m": (512, 6, 8, 50_304),
                "pythia-160m": (768, 12, 12, 50_304),
                "pythia-410m": (1024, 24, 16, 50_304),
                "pythia-1b": (2048, 16, 8, 50_304),
                "pythia-1.4b": (2048, 24, 16, 50_304),
                "pythia-2.8b": (2560, 32, 32, 50_304),
                "pythia-6.9b": (4096, 32, 32, 50_432),
                "pythia-12b": (5120, 36, 40, 50_688),
                "redpajama-incite-3b": (2560, 32, 32, 50_432),
                "redpajama-incite-7b": (4096, 32, 32, 50_432),
                "gpt-neox-20b": (6144, 44, 64, 50_432),
            }
            red: dict[str, Any] = {"rotated_fraction": 1.0, "parallel_residual": False}
            neox: dict[str, Any] = {"activation": "gelu_tanh"}
            return {
                name: cls(
                    vocabulary=vocabulary, width=width, num_layers=layers, num_heads=heads, feed_forward_width=4 * width,
                    **(red if name.startswith("redpajama") else neox if name == "gpt-neox-20b" else {}),
                )
                for name, (width, layers, heads, vocabulary) in shapes.items()
            }  # fmt: skip

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        c, width = config, config.width
        self.embedding = nn.Embedding(c.vocabulary, width)
        self.rotary = PartialRotary(c.head_width, c.rotated_width, c.rope_theta)
        block = ParallelBlock if c.parallel_residual else PreNormBlock
        self.blocks = nn.ModuleList(
            block(
                nn.LayerNorm(width, eps=c.norm_eps),
                Attention(width, c.num_heads, layer=layer),
                nn.LayerNorm(width, eps=c.norm_eps),
                FeedForward(width, c.feed_forward_width, c.activation),
            )
            for layer in range(c.num_layers)
        )
        self.final_norm = nn.LayerNorm(width, eps=c.norm_eps)
        self.output = nn.Linear(width, c.vocabulary, bias=False)
        if c.tied_head:
            self.output.weight = self.embedding.weight
        initialise_normal(self)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens)

    def forward(
        self, sequence: TokenSequence, cache: Cache | None = None, start: int = 0, stop: int | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        stop = len(self.blocks) if stop is None else stop
        rotary = self.rotary(sequence.positions)
        context = BlockContext(sequence.rule, rotary, sequence.modality, cache, routing=sequence.routing)
        hidden, memory = working_precision(sequence.embeddings), sequence.memory
        for block in islice(self.blocks, start, stop):
            hidden, memory = block(hidden, memory, context)
        if stop == len(self.blocks):
            hidden = self.final_norm(hidden)
        return hidden, memory

    def head(self, hidden: Tensor) -> Tensor:
        return self.output(hidden)
