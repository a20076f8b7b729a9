"""The two towers of CLIP, arXiv:2103.00020."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from weft.core.attention_rule import AttentionRule
from weft.core.batch import TextSide
from weft.core.interfaces import ModalityEncoder, TextEncoder
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.layers.patch_embedding import PatchEmbedding, patches_per_side
from weft.layers.single_texts import check_single_texts
from weft.layers.slots import BlockContext
from weft.layers.transformer import num_blocks_to_run, pre_norm_blocks, run_blocks

JOINT_WIDTHS = {"vision": {768: 512, 1024: 768}, "text": {512: 512, 768: 768}}
"""By a published tower's width that of the space in which CLIP compares; the projections into it are the dual encoder's."""


def initialise_blocks(blocks: nn.ModuleList, width: int) -> None:
    """The published start: deviations that keep the residual stream's size over the depth; biases at zero."""
    residual = width**-0.5 * (2 * len(blocks)) ** -0.5
    deviation = {"query": width**-0.5, "key": width**-0.5, "value": width**-0.5, "output": residual, "down": residual}
    deviation["up"] = (2 * width) ** -0.5
    for name, module in blocks.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=deviation[name.rpartition(".")[2]])
            nn.init.zeros_(module.bias)


class ClipVision(ModalityEncoder):
    """A vision transformer with a class token, a norm before the first block, and one hidden state as its features.

    Shapes: units [N, 3, S, S] -> values [N, G * G, C] with G = S // patch_size, one more in front with the class token kept;
    `pool` gives the normalised class token [N, C].
    Source: CLIP, arXiv:2103.00020; the features of LLaVA-1.5 (arXiv:2310.03744) are `feature_layer=-2`.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ModalityEncoder.Config):
        """`feature_layer` counts hidden states: 0 enters the first block, -1 leaves the last one, -2 the one before."""

        image_size: int = 224
        patch_size: int = 32
        width: int = 768
        num_layers: int = 12
        num_heads: int = 12
        feed_forward_width: int = 3072
        activation: str = "quick_gelu"
        feature_layer: int = -2
        keep_class_token: bool = False
        norm_eps: float = 1e-5

        def __post_init__(self) -> None:
            num_blocks_to_run(self.feature_layer, self.num_layers)
            patches_per_side(self.image_size, self.patch_size)

        def build(self) -> ClipVision:
            return ClipVision(self)

        @property
        def output_width(self) -> int:
            return self.width

        def layout(self) -> MediaLayout:
            """The patch grid; with the class token kept there is no grid any more but one row of features."""
            side = patches_per_side(self.image_size, self.patch_size)
            return MediaLayout(1, side * side + 1) if self.keep_class_token else MediaLayout(side, side)

        @property
        def omitted(self) -> Mapping[str, int]:
            joint = JOINT_WIDTHS["vision"].get(self.width)
            return {} if joint is None else {"projection": self.width * joint}

        @classmethod
        def tiny(cls) -> Self:
            return cls(image_size=32, patch_size=8, width=64, num_layers=2, num_heads=2, feed_forward_width=128)

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            large: dict[str, Any] = {"width": 1024, "num_layers": 24, "num_heads": 16, "feed_forward_width": 4096}
            return {
                "b-32": cls(),
                "b-16": cls(patch_size=16),
                "l-14": cls(patch_size=14, **large),
                "l-14-336": cls(patch_size=14, image_size=336, **large),
            }

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        c = config
        self.class_embedding = nn.Parameter(torch.empty(c.width))
        self.patch_embedding = PatchEmbedding(c.image_size, c.patch_size, c.width, bias=False)
        self.position_embedding = nn.Parameter(torch.empty(patches_per_side(c.image_size, c.patch_size) ** 2 + 1, c.width))
        self.input_norm = nn.LayerNorm(c.width, eps=c.norm_eps)
        self.blocks = pre_norm_blocks(c.width, c.num_layers, c.num_heads, c.feed_forward_width, c.activation, c.norm_eps)
        self.final_norm = nn.LayerNorm(c.width, eps=c.norm_eps)
        self.initialise()

    def initialise(self) -> None:
        """The published start; the patch convolution keeps PyTorch's default, as the published code does."""
        nn.init.normal_(self.class_embedding, std=self.config.width**-0.5)
        nn.init.normal_(self.position_embedding, std=self.config.width**-0.5)
        initialise_blocks(self.blocks, self.config.width)

    def embed(self, units: Tensor) -> Tensor:
        """The state that enters the first block, class token first: [N, 1 + G * G, C]."""
        patches = self.patch_embedding(units)
        first = self.class_embedding.to(patches.dtype).expand(len(units), 1, -1)
        return self.input_norm(torch.cat((first, patches), 1) + self.position_embedding)

    def hidden_state(self, units: Tensor, num_blocks: int) -> Tensor:
        """The state after `num_blocks` blocks, class token first: [N, 1 + G * G, C]."""
        hidden = self.embed(units)
        rule = AttentionRule.bidirectional(len(hidden), hidden.shape[1], hidden.device)
        return run_blocks(self.blocks, hidden, BlockContext(rule), num_blocks)

    def forward(self, units: Tensor, unit_item: Tensor, layout: tuple[MediaLayout, ...]) -> MediaFeatures:
        hidden = self.hidden_state(units, num_blocks_to_run(self.config.feature_layer, self.config.num_layers))
        return MediaFeatures(hidden if self.config.keep_class_token else hidden[:, 1:], unit_item, layout)

    def pool(self, units: Tensor) -> Tensor:
        return self.final_norm(self.hidden_state(units, self.config.num_layers)[:, 0])


class ClipText(TextEncoder):
    """A causal transformer, pooled at the last token of the text, which is the end-of-text token.

    Shapes: text [B, T], one text a row -> [B, C]. Source: CLIP, arXiv:2103.00020.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(TextEncoder.Config):
        """`end_token` is the end-of-text token that other libraries must look for; None: the last of the vocabulary."""

        vocabulary: int = 49_408  # type: ignore[assignment]  # a field serves the interface's property
        context: int = 77
        width: int = 512
        num_layers: int = 12
        num_heads: int = 8
        feed_forward_width: int = 2048
        activation: str = "quick_gelu"
        norm_eps: float = 1e-5
        end_token: int | None = None

        def build(self) -> ClipText:
            return ClipText(self)

        @property
        def output_width(self) -> int:
            return self.width

        @property
        def omitted(self) -> Mapping[str, int]:
            joint = JOINT_WIDTHS["text"].get(self.width)
            return {} if joint is None else {"projection": self.width * joint}

        @classmethod
        def tiny(cls) -> Self:
            return cls(vocabulary=96, context=32, width=64, num_layers=2, num_heads=2, feed_forward_width=128)

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            large = cls(width=768, num_heads=12, feed_forward_width=3072)
            return {"b-32": cls(), "b-16": cls(), "l-14": large, "l-14-336": large}

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        c = config
        self.token_embedding = nn.Embedding(c.vocabulary, c.width)
        self.position_embedding = nn.Embedding(c.context, c.width)
        self.blocks = pre_norm_blocks(c.width, c.num_layers, c.num_heads, c.feed_forward_width, c.activation, c.norm_eps)
        self.final_norm = nn.LayerNorm(c.width, eps=c.norm_eps)
        self.initialise()

    def initialise(self) -> None:
        """The published start."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.01)
        initialise_blocks(self.blocks, self.config.width)

    def forward(self, text: TextSide) -> Tensor:
        check_single_texts(text, self.config.context, type(self).__name__)
        hidden = self.token_embedding(text.tokens) + self.position_embedding(text.positions)
        hidden = run_blocks(self.blocks, hidden, BlockContext(text.rule()))
        last = text.order.masked_fill(text.segment != 1, -1).argmax(1)
        return self.final_norm(hidden[torch.arange(len(hidden), device=hidden.device), last])
