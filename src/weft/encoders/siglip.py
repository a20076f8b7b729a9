"""The two towers of SigLIP, arXiv:2303.15343."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from weft.core.attention_rule import AttentionRule
from weft.core.batch import TextSide
from weft.core.errors import ConfigError
from weft.core.interfaces import ModalityEncoder, TextEncoder
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.layers.attention_pooling import AttentionPooling
from weft.layers.feed_forward import FeedForward
from weft.layers.patch_embedding import PatchEmbedding, patches_per_side
from weft.layers.single_texts import check_single_texts
from weft.layers.slots import BlockContext
from weft.layers.transformer import num_blocks_to_run, pre_norm_blocks, run_blocks


def initialise_layers(module: nn.Module) -> None:
    """The published start: Glorot for every matrix, feed-forward biases within a hair of zero, the other biases at zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    for layer in module.modules():
        if isinstance(layer, FeedForward):
            nn.init.normal_(layer.up.bias, std=1e-6)
            nn.init.normal_(layer.down.bias, std=1e-6)


class SiglipVision(ModalityEncoder):
    """A vision transformer without a class token; its features are one hidden state, its pooled vector an attention over all.

    Shapes: units [N, 3, S, S] -> values [N, G * G, C] with G = S // patch_size; `pool` [N, C].
    Source: SigLIP, arXiv:2303.15343; So400m's shape: arXiv:2305.13035.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ModalityEncoder.Config):
        """`feature_layer` counts hidden states: 0 enters the first block, -1 leaves the last one, -2 the one before;
        "normed" is the last one after the final norm. Without `pooling_head` the tower only serves features."""

        image_size: int = 224
        patch_size: int = 16
        width: int = 768
        num_layers: int = 12
        num_heads: int = 12
        feed_forward_width: int = 3072
        activation: str = "gelu_tanh"
        feature_layer: int | Literal["normed"] = -2
        pooling_head: bool = True
        norm_eps: float = 1e-6

        def __post_init__(self) -> None:
            if isinstance(self.feature_layer, int):
                num_blocks_to_run(self.feature_layer, self.num_layers)
            if self.image_size < self.patch_size:
                raise ConfigError(
                    f"an image of {self.image_size} pixels holds no patch of {self.patch_size}; enlarge the image"
                )

        def build(self) -> SiglipVision:
            return SiglipVision(self)

        @property
        def output_width(self) -> int:
            return self.width

        def layout(self) -> MediaLayout:
            side = patches_per_side(self.image_size, self.patch_size)
            return MediaLayout(side, side)

        @property
        def omitted(self) -> Mapping[str, int]:
            if self.pooling_head:
                return {}
            attention, norm = 4 * self.width * (self.width + 1), 2 * self.width
            feed_forward = (2 * self.width + 1) * self.feed_forward_width + self.width
            return {"pooling head": self.width + attention + norm + feed_forward}

        @classmethod
        def tiny(cls) -> Self:
            return cls(image_size=32, patch_size=8, width=64, num_layers=2, num_heads=2, feed_forward_width=128)

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            large: dict[str, Any] = {"width": 1024, "num_layers": 24, "num_heads": 16, "feed_forward_width": 4096}
            so400m: dict[str, Any] = {"width": 1152, "num_layers": 27, "num_heads": 16, "feed_forward_width": 4304}
            return {
                "b-16-224": cls(),
                "l-16-256": cls(image_size=256, **large),
                "so400m-14-384": cls(image_size=384, patch_size=14, **so400m),
            }

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        c = config
        self.patch_embedding = PatchEmbedding(c.image_size, c.patch_size, c.width, bias=True)
        self.position_embedding = nn.Parameter(torch.empty(patches_per_side(c.image_size, c.patch_size) ** 2, c.width))
        self.blocks = pre_norm_blocks(c.width, c.num_layers, c.num_heads, c.feed_forward_width, c.activation, c.norm_eps)
        self.final_norm = nn.LayerNorm(c.width, eps=c.norm_eps)
        self.pooling: AttentionPooling | None = None
        if c.pooling_head:
            self.pooling = AttentionPooling(c.width, c.num_heads, c.feed_forward_width, c.activation, c.norm_eps)
        self.initialise()

    def initialise(self) -> None:
        """The published start."""
        initialise_layers(self)
        convolution = self.patch_embedding.projection
        nn.init.trunc_normal_(convolution.weight, std=convolution.weight[0].numel() ** -0.5)
        assert convolution.bias is not None
        nn.init.zeros_(convolution.bias)
        nn.init.normal_(self.position_embedding, std=self.config.width**-0.5)
        if self.pooling is not None:
            nn.init.xavier_uniform_(self.pooling.probe.view(1, -1))

    def hidden_state(self, units: Tensor, num_blocks: int) -> Tensor:
        """The state after `num_blocks` blocks: [N, G * G, C]."""
        hidden = self.patch_embedding(units) + self.position_embedding
        rule = AttentionRule.bidirectional(len(hidden), hidden.shape[1], hidden.device)
        return run_blocks(self.blocks, hidden, BlockContext(rule), num_blocks)

    def normed(self, units: Tensor) -> Tensor:
        """The last hidden state after the final norm: [N, G * G, C]."""
        return self.final_norm(self.hidden_state(units, self.config.num_layers))

    def forward(self, units: Tensor, unit_item: Tensor, layout: tuple[MediaLayout, ...]) -> MediaFeatures:
        wanted = self.config.feature_layer
        if wanted == "normed":
            return MediaFeatures(self.normed(units), unit_item, layout)
        return MediaFeatures(self.hidden_state(units, num_blocks_to_run(wanted, self.config.num_layers)), unit_item, layout)

    def pool(self, units: Tensor) -> Tensor:
        if self.pooling is None:
            raise ConfigError("this SiglipVision was built without its pooling head; set pooling_head=True to compare media")
        return self.pooling(self.normed(units))


class SiglipText(TextEncoder):
    """A bidirectional transformer over a text that is padded to the whole context, pooled at the last position.

    The padding is part of the published text: padding tokens are seen like any other. Rows that are shorter, or whose padding
    is marked by segment 0, are filled up here, so a text does not depend on its neighbours in the batch.

    Shapes: text [B, T], one text a row -> [B, C]. Source: SigLIP, arXiv:2303.15343.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(TextEncoder.Config):
        vocabulary: int = 32_000  # type: ignore[assignment]  # a field serves the interface's property
        context: int = 64
        width: int = 768
        num_layers: int = 12
        num_heads: int = 12
        feed_forward_width: int = 3072
        activation: str = "gelu_tanh"
        norm_eps: float = 1e-6
        padding_token: int = 1  # the published tokenizer pads with its end-of-text token

        def build(self) -> SiglipText:
            return SiglipText(self)

        @property
        def output_width(self) -> int:
            return self.width

        @classmethod
        def tiny(cls) -> Self:
            return cls(vocabulary=96, context=32, width=64, num_layers=2, num_heads=2, feed_forward_width=128)

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            return {
                "b-16-224": cls(),
                "l-16-256": cls(width=1024, num_layers=24, num_heads=16, feed_forward_width=4096),
                "so400m-14-384": cls(width=1152, num_layers=27, num_heads=16, feed_forward_width=4304),
            }

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        c = config
        self.token_embedding = nn.Embedding(c.vocabulary, c.width)
        self.position_embedding = nn.Parameter(torch.empty(c.context, c.width))
        self.blocks = pre_norm_blocks(c.width, c.num_layers, c.num_heads, c.feed_forward_width, c.activation, c.norm_eps)
        self.final_norm = nn.LayerNorm(c.width, eps=c.norm_eps)
        self.head = nn.Linear(c.width, c.width)
        self.initialise()

    def initialise(self) -> None:
        """The published start."""
        initialise_layers(self)
        deviation = 1 / math.sqrt(self.config.width)
        nn.init.normal_(self.token_embedding.weight, std=deviation)
        nn.init.normal_(self.position_embedding, std=deviation)
        nn.init.trunc_normal_(self.head.weight, std=deviation)

    def padded(self, text: TextSide) -> Tensor:
        """Every text at its positions, padding tokens elsewhere: [B, context]."""
        context = self.config.context
        tokens = text.tokens.new_full((len(text.tokens), context + 1), self.config.padding_token)
        # one column more than the context: what is not part of the text falls there and is cut off
        return tokens.scatter(1, text.positions.masked_fill(text.segment != 1, context), text.tokens)[:, :context]

    def forward(self, text: TextSide) -> Tensor:
        check_single_texts(text, self.config.context, type(self).__name__)
        hidden = self.token_embedding(self.padded(text)) + self.position_embedding
        rule = AttentionRule.bidirectional(len(hidden), hidden.shape[1], hidden.device)
        hidden = run_blocks(self.blocks, hidden, BlockContext(rule))
        return self.head(self.final_norm(hidden[:, -1]))
