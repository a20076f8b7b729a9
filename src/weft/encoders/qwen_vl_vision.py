"""The image tower of Qwen-VL, arXiv:2308.12966."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from weft.core.attention_rule import AttentionRule
from weft.core.interfaces import ModalityEncoder
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.layers.patch_embedding import PatchEmbedding, patches_per_side
from weft.layers.position_interpolation import interpolate_positions
from weft.layers.slots import BlockContext
from weft.layers.transformer import pre_norm_blocks, run_blocks


class QwenVLVision(ModalityEncoder):
    """OpenCLIP's ViT-bigG without class token and without its norm at the end, which stands behind Qwen-VL's resampler.

    Positions are those of the size that they were learned at, interpolated bicubically to the picture's grid.

    Shapes: units [N, 3, S, S] -> values [N, G * G, C] with G = S // patch_size.
    Source: Qwen-VL, arXiv:2308.12966; the tower is OpenCLIP's, arXiv:2212.07143.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ModalityEncoder.Config):
        """`position_image_size` is the size that the positions were learned at."""

        image_size: int = 448
        position_image_size: int = 224
        patch_size: int = 14
        width: int = 1664
        num_layers: int = 48
        num_heads: int = 16
        feed_forward_width: int = 8192
        activation: str = "gelu"
        norm_eps: float = 1e-6

        def __post_init__(self) -> None:
            patches_per_side(self.image_size, self.patch_size)
            patches_per_side(self.position_image_size, self.patch_size)

        def build(self) -> QwenVLVision:
            return QwenVLVision(self)

        @property
        def output_width(self) -> int:
            return self.width

        def layout(self) -> MediaLayout:
            side = patches_per_side(self.image_size, self.patch_size)
            return MediaLayout(side, side)

        @classmethod
        def tiny(cls) -> Self:
            return cls(
                image_size=32, position_image_size=24, patch_size=8, width=64, num_layers=2, num_heads=2, feed_forward_width=128
            )

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            return {"bigg-14-224": cls(image_size=224), "bigg-14-448": cls()}

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        c = config
        self.patch_embedding = PatchEmbedding(c.image_size, c.patch_size, c.width, bias=False)
        learned = patches_per_side(c.position_image_size, c.patch_size)
        self.position_embedding = nn.Parameter(torch.empty(learned * learned, c.width))
        self.input_norm = nn.LayerNorm(c.width, eps=c.norm_eps)
        self.blocks = pre_norm_blocks(c.width, c.num_layers, c.num_heads, c.feed_forward_width, c.activation, c.norm_eps)
        self.initialise()

    def initialise(self) -> None:
        """The published start; matrices keep PyTorch's default, as the published code does."""
        nn.init.normal_(self.position_embedding, std=self.config.width**-0.5)

    def forward(self, units: Tensor, unit_item: Tensor, layout: tuple[MediaLayout, ...]) -> MediaFeatures:
        side = patches_per_side(self.config.image_size, self.config.patch_size)
        positions = interpolate_positions(self.position_embedding, side, "plain")
        hidden = self.input_norm(self.patch_embedding(units) + positions)
        rule = AttentionRule.bidirectional(len(hidden), hidden.shape[1], hidden.device)
        return MediaFeatures(run_blocks(self.blocks, hidden, BlockContext(rule)), unit_item, layout)
