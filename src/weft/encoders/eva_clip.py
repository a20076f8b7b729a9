"""The vision towers of EVA-CLIP, arXiv:2303.15389, and the one that BLIP-2 and its kin read features from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from weft.core.attention_rule import AttentionRule
from weft.core.errors import ConfigError
from weft.core.interfaces import ModalityEncoder
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.layers.attention import Attention
from weft.layers.block import PreNormBlock
from weft.layers.branch_dropping import StochasticDepth, checked_rate, rising_rates
from weft.layers.feed_forward import FeedForward
from weft.layers.patch_dropout import PatchDropout
from weft.layers.patch_embedding import PatchEmbedding, patches_per_side
from weft.layers.residual_post_norm_block import ResidualPostNormBlock
from weft.layers.rotary_2d import Rotary2d, grid_places
from weft.layers.slots import BlockContext
from weft.layers.sub_norm import sub_norm_block
from weft.layers.transformer import num_blocks_to_run, run_blocks


def pre_norm_block(
    width: int, num_heads: int, feed_forward_width: int, norm_eps: float, layer: int, key_bias: bool = False
) -> PreNormBlock:
    """EVA-01's block: GELU feed-forward, biases everywhere but on the key."""
    return PreNormBlock(
        nn.LayerNorm(width, eps=norm_eps),
        Attention(width, num_heads, layer=layer, key_bias=key_bias),
        nn.LayerNorm(width, eps=norm_eps),
        FeedForward(width, feed_forward_width),
    )


def residual_post_norm_block(
    width: int, num_heads: int, feed_forward_width: int, norm_eps: float, layer: int, key_bias: bool = False
) -> ResidualPostNormBlock:
    """The block of the enormous models: EVA-01's layers, each normed before it is added."""
    return ResidualPostNormBlock(
        Attention(width, num_heads, layer=layer, key_bias=key_bias),
        nn.LayerNorm(width, eps=norm_eps),
        FeedForward(width, feed_forward_width),
        nn.LayerNorm(width, eps=norm_eps),
    )


BLOCKS: dict[str, Callable[..., nn.Module]] = {
    "pre_norm": pre_norm_block,
    "sub_norm": sub_norm_block,
    "residual_post_norm": residual_post_norm_block,
}


class EvaClipVision(ModalityEncoder):
    """A vision transformer with a class token and no norm before the first block; its sizes differ in their blocks.

    The g models are pre-norm with a plain feed-forward; B and L are pre-norm with sub-norms, SwiGLU and rotary positions; E
    norms inside the residual. `pool` gives the class token after the final norm and the tower's own head, which has a bias,
    already in the joint space: a dual encoder projects only its text. Patches are dropped while training in `pool` alone:
    features keep their grid, on which token counts rely.

    The tower of BLIP-2 ends before EVA-CLIP-g's last block, final norm and head; all its tokens go through `feature_norm`, a
    norm of their own. The published training has its eps at 1e-5, `transformers` uses the tower's 1e-6.

    Shapes: units [N, 3, S, S] -> values [N, G * G, C] with G = S // patch_size, one more in front with the class token kept;
    `pool` [N, E].
    Source: EVA, arXiv:2211.07636; EVA-02, arXiv:2303.11331; EVA-CLIP, arXiv:2303.15389; BLIP-2, arXiv:2301.12597.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ModalityEncoder.Config):
        """`feature_layer` counts hidden states: 0 enters the first block, -1 leaves the last one, -2 the one before.

        `rotary_side` is the side of the grid, in patches, that rotary positions were made for; None: no rotary positions.
        `stochastic_depth` is the rate towards which that of the blocks rises from zero, in training.
        `embedding_width` is the width of the pooled vector; None: no final norm and no head, the tower only serves features.
        `feature_norm_eps` gives the features a norm of their own; None: hidden states as they are.
        `key_bias` holds the keys' biases of CogVLM's files, which change nothing (not in blocks with sub-norms).
        """

        image_size: int = 224
        patch_size: int = 14
        width: int = 1408
        num_layers: int = 40
        num_heads: int = 16
        feed_forward_width: int = 6144
        block: Literal["pre_norm", "sub_norm", "residual_post_norm"] = "pre_norm"
        key_bias: bool = False
        rotary_side: int | None = None
        embedding_width: int | None = 1024
        patch_dropout: float = 0.0
        stochastic_depth: float = 0.0
        feature_layer: int = -2
        feature_norm_eps: float | None = None
        keep_class_token: bool = False
        norm_eps: float = 1e-6

        def __post_init__(self) -> None:
            num_blocks_to_run(self.feature_layer, self.num_layers)
            patches_per_side(self.image_size, self.patch_size)
            if self.key_bias and self.block == "sub_norm":
                raise ConfigError("blocks with sub-norms have no biases of keys; set key_bias=False or another block")
            checked_rate(self.stochastic_depth, "stochastic_depth")
            divisor = self.num_heads if self.rotary_side is None else 4 * self.num_heads
            if self.width % divisor:
                why = "" if self.rotary_side is None else ", each in four parts for rotary positions on a grid"
                raise ConfigError(f"width {self.width} does not split into {self.num_heads} heads{why}; change either")

        def build(self) -> EvaClipVision:
            return EvaClipVision(self)

        @property
        def output_width(self) -> int:
            return self.width

        @property
        def pooled_width(self) -> int:
            return self.width if self.embedding_width is None else self.embedding_width

        def layout(self) -> MediaLayout:
            """The patch grid; with the class token kept there is no grid any more but one row of features."""
            side = patches_per_side(self.image_size, self.patch_size)
            return MediaLayout(1, side * side + 1) if self.keep_class_token else MediaLayout(side, side)

        @property
        def omitted(self) -> Mapping[str, int]:
            whole = type(self)()  # EVA-CLIP-g, of which others keep the trunk and leave out its end
            shape = (self.width, self.num_heads, self.feed_forward_width, self.block)
            if self.embedding_width or shape != (whole.width, whole.num_heads, whole.feed_forward_width, whole.block):
                return {}
            assert whole.embedding_width is not None
            attention, norms = 4 * self.width**2 + 3 * self.width, 4 * self.width
            feed_forward = (2 * self.width + 1) * self.feed_forward_width + self.width
            blocks = range(self.num_layers, whole.num_layers)
            return {
                **{f"block {layer + 1}": attention + norms + feed_forward for layer in blocks},
                "final norm": 2 * self.width,
                "head": (self.width + 1) * whole.embedding_width,
            }

        @classmethod
        def tiny(cls) -> Self:
            small: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 64, "num_layers": 2, "num_heads": 2}
            return cls(**small, feed_forward_width=86, block="sub_norm", rotary_side=3, embedding_width=24)

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            rotary: dict[str, Any] = {"block": "sub_norm", "rotary_side": 16}
            base: dict[str, Any] = {"width": 768, "num_layers": 12, "num_heads": 12, "feed_forward_width": 2048, **rotary}
            large: dict[str, Any] = {"width": 1024, "num_layers": 24, "feed_forward_width": 2730, **rotary}
            enormous: dict[str, Any] = {"width": 1792, "num_layers": 64, "feed_forward_width": 15_360}
            enormous |= {"block": "residual_post_norm", "patch_dropout": 0.5}
            blip_2: dict[str, Any] = {"num_layers": 39, "feature_layer": -1, "feature_norm_eps": 1e-5}
            cogvlm = enormous | {"num_layers": 63, "patch_dropout": 0.0}
            return {
                "g-14": cls(stochastic_depth=0.4),
                "g-14-plus": cls(patch_dropout=0.5),
                "b-16": cls(patch_size=16, embedding_width=512, **base),
                "l-14": cls(embedding_width=768, **large),
                "l-14-336": cls(image_size=336, embedding_width=768, **large),
                "e-14": cls(**enormous),
                "e-14-plus": cls(**enormous),
                "g-14-blip-2": cls(embedding_width=None, keep_class_token=True, **blip_2),
                "e-14-cogvlm": cls(image_size=490, embedding_width=None, feature_layer=-1, key_bias=True, **cogvlm),
            }

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        c = config
        self.class_embedding = nn.Parameter(torch.empty(c.width))
        self.patch_embedding = PatchEmbedding(c.image_size, c.patch_size, c.width, bias=True)
        self.position_embedding = nn.Parameter(torch.empty(patches_per_side(c.image_size, c.patch_size) ** 2 + 1, c.width))
        self.patch_dropout = PatchDropout(c.patch_dropout)
        self.rotary = None if c.rotary_side is None else Rotary2d(c.width // c.num_heads)
        block = partial(BLOCKS[c.block], key_bias=True) if c.key_bias else BLOCKS[c.block]
        self.blocks = nn.ModuleList(
            block(c.width, c.num_heads, c.feed_forward_width, c.norm_eps, layer) for layer in range(c.num_layers)
        )
        for made, rate in zip(self.blocks, rising_rates(c.stochastic_depth, c.num_layers), strict=True):
            if rate:
                made.dropping = StochasticDepth(rate)
        self.feature_norm = nn.Identity() if c.feature_norm_eps is None else nn.LayerNorm(c.width, eps=c.feature_norm_eps)
        self.final_norm: nn.LayerNorm | None = None
        self.head: nn.Linear | None = None
        if c.embedding_width is not None:
            self.final_norm = nn.LayerNorm(c.width, eps=c.norm_eps)
            self.head = nn.Linear(c.width, c.embedding_width)
        self.initialise()

    def initialise(self) -> None:
        """The published start, of image modelling: the patch convolution keeps PyTorch's, the head is next to nothing."""
        nn.init.trunc_normal_(self.class_embedding, std=0.02)
        nn.init.trunc_normal_(self.position_embedding, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        with torch.no_grad():
            for depth, block in enumerate(self.blocks, start=1):
                for name, module in block.named_modules():
                    if isinstance(module, nn.Linear) and name.startswith(("attention.output", "feed_forward.down")):
                        module.weight.div_(math.sqrt(2 * depth))
            if self.head is not None:
                self.head.weight.mul_(0.001)

    def embed(self, units: Tensor) -> Tensor:
        """The state that enters the first block, class token first: [N, 1 + G * G, C]."""
        patches = self.patch_embedding(units)
        first = self.class_embedding.to(patches.dtype).expand(len(units), 1, -1)
        return torch.cat((first, patches), 1) + self.position_embedding

    def hidden_state(self, units: Tensor, num_blocks: int, whole: bool = True) -> Tensor:
        """The state after `num_blocks` blocks, class token first: [N, 1 + G * G, C], or fewer patches where not `whole`."""
        hidden = self.embed(units)
        side = patches_per_side(self.config.image_size, self.config.patch_size)
        places = grid_places(side, self.config.rotary_side or side, hidden.device)
        if not whole:
            hidden, places = self.patch_dropout(hidden, places)
        rule = AttentionRule.bidirectional(len(hidden), hidden.shape[1], hidden.device)
        context = BlockContext(rule, rotary=None if self.rotary is None else self.rotary(places))
        return run_blocks(self.blocks, hidden, context, num_blocks)

    def forward(self, units: Tensor, unit_item: Tensor, layout: tuple[MediaLayout, ...]) -> MediaFeatures:
        hidden = self.hidden_state(units, num_blocks_to_run(self.config.feature_layer, self.config.num_layers))
        hidden = hidden if self.config.keep_class_token else hidden[:, 1:]
        return MediaFeatures(self.feature_norm(hidden), unit_item, layout)

    def pool(self, units: Tensor) -> Tensor:
        if self.final_norm is None or self.head is None:
            raise ConfigError("this EvaClipVision was built without its head; set embedding_width to compare media")
        return self.head(self.final_norm(self.hidden_state(units, self.config.num_layers, whole=False)[:, 0]))
