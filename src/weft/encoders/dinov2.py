"""DINOv2's vision transformer, arXiv:2304.07193, with and without registers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from weft.core.attention_rule import AttentionRule
from weft.core.interfaces import ModalityEncoder
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.layers.feed_forward import FeedForward, GatedFeedForward
from weft.layers.layer_scale import layer_scale_blocks
from weft.layers.patch_embedding import PatchEmbedding, patches_per_side
from weft.layers.position_interpolation import PositionInterpolation, interpolate_positions
from weft.layers.slots import BlockContext
from weft.layers.transformer import num_blocks_to_run, run_blocks


class Dinov2(ModalityEncoder):
    """A self-supervised vision transformer: class token, optional registers, scaled branches, one hidden state as its features.

    Registers are learned tokens without a position that patches may attend to; they never become features. Pictures are
    normalised by ImageNet's mean and deviation.

    Shapes: units [N, 3, S, S] -> values [N, G * G, C] with G = S // patch_size, one more in front with the class token kept;
    `pool` gives the normalised class token [N, C].
    Source: DINOv2, arXiv:2304.07193; registers, arXiv:2309.16588.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ModalityEncoder.Config):
        """`feature_layer` counts hidden states: 0 enters the first block, -1 leaves the last one, -2 the one before;
        "normed" is the last one after the final norm.

        `position_image_size` is the size that the positions were learned at; they are interpolated to `image_size`. Published
        features without registers use "offset", those with registers "antialiased"; the `transformers` library does "plain"
        in place of "offset". `gated` makes the feed-forward a SwiGLU of two thirds of the width. `mask_token` keeps the token
        that stood for a hidden patch in pre-training: files hold it, no picture needs it.
        """

        image_size: int = 518
        position_image_size: int = 518
        patch_size: int = 14
        width: int = 768
        num_layers: int = 12
        num_heads: int = 12
        feed_forward_ratio: int = 4
        gated: bool = False
        activation: str = "gelu"
        num_registers: int = 0
        position_interpolation: PositionInterpolation = "offset"
        feature_layer: int | Literal["normed"] = -1
        keep_class_token: bool = False
        mask_token: bool = True
        initial_scale: float = 1e-5
        norm_eps: float = 1e-6

        def __post_init__(self) -> None:
            if isinstance(self.feature_layer, int):
                num_blocks_to_run(self.feature_layer, self.num_layers)
            patches_per_side(self.image_size, self.patch_size)
            patches_per_side(self.position_image_size, self.patch_size)

        def build(self) -> Dinov2:
            return Dinov2(self)

        @property
        def output_width(self) -> int:
            return self.width

        @property
        def feed_forward_width(self) -> int:
            """The feed-forward's inner width: gated, two thirds of the plain one rounded up to a multiple of 8."""
            plain = self.width * self.feed_forward_ratio
            return (int(plain * 2 / 3) + 7) // 8 * 8 if self.gated else plain

        def layout(self) -> MediaLayout:
            """The patch grid; with the class token kept there is no grid any more but one row of features."""
            side = patches_per_side(self.image_size, self.patch_size)
            return MediaLayout(1, side * side + 1) if self.keep_class_token else MediaLayout(side, side)

        @classmethod
        def tiny(cls) -> Self:
            return cls(
                image_size=32, position_image_size=40, patch_size=8, width=64, num_layers=2, num_heads=2, feed_forward_ratio=2,
                num_registers=2, position_interpolation="antialiased",
            )  # fmt: skip

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            plain = {
                "s-14": cls(width=384, num_heads=6),
                "b-14": cls(),
                "l-14": cls(width=1024, num_layers=24, num_heads=16),
                "g-14": cls(width=1536, num_layers=40, num_heads=24, gated=True),
            }
            registers: dict[str, Any] = {"num_registers": 4, "position_interpolation": "antialiased"}
            with_registers = {f"{name}-registers": dataclasses.replace(size, **registers) for name, size in plain.items()}
            return plain | with_registers

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        c = config
        self.class_embedding = nn.Parameter(torch.empty(c.width))
        self.registers = nn.Parameter(torch.empty(c.num_registers, c.width)) if c.num_registers else None
        self.patch_embedding = PatchEmbedding(c.image_size, c.patch_size, c.width, bias=True)
        learned = patches_per_side(c.position_image_size, c.patch_size)
        self.position_embedding = nn.Parameter(torch.empty(learned * learned + 1, c.width))
        self.mask_token: Tensor | None
        self.register_buffer("mask_token", torch.zeros(c.width) if c.mask_token else None)
        self.blocks = layer_scale_blocks(c.width, c.num_layers, c.num_heads, self._feed_forward, c.norm_eps, c.initial_scale)
        self.final_norm = nn.LayerNorm(c.width, eps=c.norm_eps)
        self.initialise()

    def _feed_forward(self) -> nn.Module:
        c = self.config
        if c.gated:
            return GatedFeedForward(c.width, c.feed_forward_width, bias=True)
        return FeedForward(c.width, c.feed_forward_width, c.activation)

    def initialise(self) -> None:
        """The published start; the patch convolution keeps PyTorch's default, as the published code does."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.position_embedding, std=0.02)
        nn.init.normal_(self.class_embedding, std=1e-6)
        if self.registers is not None:
            nn.init.normal_(self.registers, std=1e-6)

    def positions(self) -> Tensor:
        """The class token's position and those of the patches at this tower's size: [1 + G * G, C]."""
        c = self.config
        first, grid = self.position_embedding[:1], self.position_embedding[1:]
        side = patches_per_side(c.image_size, c.patch_size)
        return torch.cat((first, interpolate_positions(grid, side, c.position_interpolation)))

    def embed(self, units: Tensor) -> Tensor:
        """The state that enters the first block, class token first, then the registers: [N, 1 + R + G * G, C]."""
        patches = self.patch_embedding(units)
        first = self.class_embedding.to(patches.dtype).expand(len(units), 1, -1)
        hidden = torch.cat((first, patches), 1) + self.positions()
        if self.registers is None:
            return hidden
        registers = self.registers.to(hidden.dtype).expand(len(units), -1, -1)
        return torch.cat((hidden[:, :1], registers, hidden[:, 1:]), 1)

    def hidden_state(self, units: Tensor, num_blocks: int) -> Tensor:
        """The state after `num_blocks` blocks, class token first, then the registers: [N, 1 + R + G * G, C]."""
        hidden = self.embed(units)
        rule = AttentionRule.bidirectional(len(hidden), hidden.shape[1], hidden.device)
        return run_blocks(self.blocks, hidden, BlockContext(rule), num_blocks)

    def forward(self, units: Tensor, unit_item: Tensor, layout: tuple[MediaLayout, ...]) -> MediaFeatures:
        c = self.config
        if c.feature_layer == "normed":
            hidden = self.final_norm(self.hidden_state(units, c.num_layers))
        else:
            hidden = self.hidden_state(units, num_blocks_to_run(c.feature_layer, c.num_layers))
        patches = hidden[:, 1 + c.num_registers :]
        return MediaFeatures(torch.cat((hidden[:, :1], patches), 1) if c.keep_class_token else patches, unit_item, layout)

    def pool(self, units: Tensor) -> Tensor:
        return self.final_norm(self.hidden_state(units, self.config.num_layers)[:, 0])
