"""HuBERT: features of speech from the waveform, arXiv:2106.07447."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from weft.core.attention_rule import AttentionRule
from weft.core.errors import ConfigError, DataError
from weft.core.interfaces import ModalityEncoder
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.layers.attention import Attention
from weft.layers.branch_dropping import LayerDrop, checked_rate
from weft.layers.position_convolution import PositionConvolution
from weft.layers.post_norm_block import PostNormBlock, PostNormFeedForward
from weft.layers.slots import BlockContext
from weft.layers.transformer import num_blocks_to_run, pre_norm_blocks, run_blocks
from weft.layers.waveform_convolutions import FIELD_SAMPLES, WaveformConvolutions, num_frames


class HubertStates(NamedTuple):
    """What one pass gives. Shapes: `hidden` [N, L, C]; `convolved` [N, L, convolution_width]; `valid` [N, L] bool or None."""

    hidden: Tensor
    convolved: Tensor
    valid: Tensor | None


class Hubert(ModalityEncoder):
    """Convolutions over the samples, positions by a convolution over the frames, and a transformer.

    The base model norms after each half of a block and once before the first; the large ones norm before each half and once
    at the end. Where a layout's `num_samples` says that a unit is padded, its features are those that it has alone: padding
    enters neither the norm over time nor the position convolution nor attention. (The `transformers` class lets it into the
    base model's norm over time; for the large ones both agree.) Features of padding are zero.

    Shapes: units [N, S] -> values [N, num_frames(S), C], valid [N, num_frames(S)] where some unit is padded.
    Source: HuBERT, arXiv:2106.07447.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ModalityEncoder.Config):
        """`clip_samples` is the length that `layout` speaks of; a forward takes any length of at least 400 samples.
        `feature_layer` counts hidden states: 0 enters the first block, 6 leaves the sixth, -1 the last one; "normed" is the
        last one after the final norm, where there is one. In training `dropout` is that of the frames before and after their
        positions, of attention's probabilities and of what the blocks add; `layer_drop` the chance of a block to be skipped."""

        modality: ClassVar[str] = "audio"

        clip_samples: int = 160_000
        convolution_width: int = 512
        convolution_norm: Literal["group", "layer"] = "group"
        convolution_bias: bool = False
        width: int = 768
        num_layers: int = 12
        num_heads: int = 12
        feed_forward_width: int = 3072
        pre_norm: bool = False
        position_kernel: int = 128
        position_groups: int = 16
        activation: str = "gelu"
        feature_layer: int | Literal["normed"] = "normed"
        norm_eps: float = 1e-5
        dropout: float = 0.1
        layer_drop: float = 0.05

        def __post_init__(self) -> None:
            if self.width % self.num_heads or self.width % self.position_groups:
                raise ConfigError(
                    f"width {self.width} splits neither into {self.num_heads} heads nor into {self.position_groups} groups of "
                    "the position convolution; choose numbers that divide it"
                )
            if self.clip_samples < FIELD_SAMPLES:
                raise ConfigError(f"clip_samples={self.clip_samples} give no frame; one takes {FIELD_SAMPLES}")
            checked_rate(self.dropout, "dropout")
            checked_rate(self.layer_drop, "layer_drop")
            if isinstance(self.feature_layer, int):
                num_blocks_to_run(self.feature_layer, self.num_layers)

        def build(self) -> Hubert:
            return Hubert(self)

        @property
        def output_width(self) -> int:
            return self.width

        @property
        def unit_shape(self) -> tuple[int]:
            return (self.clip_samples,)

        def layout(self) -> MediaLayout:
            """One row of features in time, 49 for the first second and 50 for each further one."""
            return MediaLayout(1, num_frames(self.clip_samples))

        @classmethod
        def tiny(cls) -> Self:
            return cls(
                clip_samples=2000, convolution_width=16, width=32, num_layers=2, num_heads=2, feed_forward_width=64,
                position_kernel=8, position_groups=2, dropout=0.0, layer_drop=0.0,
            )  # fmt: skip

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            later: dict[str, Any] = {"convolution_norm": "layer", "convolution_bias": True, "pre_norm": True, "num_heads": 16}
            later |= {"dropout": 0.0, "layer_drop": 0.0}
            return {
                "base": cls(),
                "large": cls(width=1024, num_layers=24, feed_forward_width=4096, **later),
                "x-large": cls(width=1280, num_layers=48, feed_forward_width=5120, **later),
            }

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        c = config
        self.convolutions = WaveformConvolutions(c.convolution_width, c.convolution_norm, c.convolution_bias)
        self.feature_norm = nn.LayerNorm(c.convolution_width, eps=c.norm_eps)
        self.feature_projection = nn.Linear(c.convolution_width, c.width)
        self.mask_embedding = nn.Parameter(torch.empty(c.width))
        self.position_convolution = PositionConvolution(c.width, c.position_kernel, c.position_groups)
        self.input_norm: nn.Module = nn.Identity()
        self.final_norm: nn.Module = nn.Identity()
        if c.pre_norm:
            self.blocks = pre_norm_blocks(
                c.width, c.num_layers, c.num_heads, c.feed_forward_width, c.activation, c.norm_eps, dropout=c.dropout
            )
            self.final_norm = nn.LayerNorm(c.width, eps=c.norm_eps)
        else:
            self.input_norm = nn.LayerNorm(c.width, eps=c.norm_eps)
            self.blocks = nn.ModuleList(_post_norm_block(c, layer) for layer in range(c.num_layers))
        self.dropout = nn.Dropout(c.dropout)
        self.layer_drop = LayerDrop(c.layer_drop)
        self.initialise()

    def initialise(self) -> None:
        """The published start."""
        nn.init.uniform_(self.mask_embedding)
        for layer in self.blocks.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def states(
        self,
        units: Tensor,
        num_samples: Tensor | None = None,
        masked: Tensor | None = None,
        num_blocks: int | None = None,
        convolution_gradient: float = 1.0,
    ) -> HubertStates:
        """The hidden state after `num_blocks` blocks (None: after all and the final norm) and what the convolutions gave.

        `convolution_gradient` scales all gradients that reach the convolutions.

        Shapes: units [N, S], num_samples [N] of the real samples or None where all are, `masked` [N, L] bool: frames whose
        place the mask embedding takes.
        Raises: DataError for units that are no waveforms or shorter than a frame.
        """
        if units.dim() != 2 or units.shape[1] < FIELD_SAMPLES:
            raise DataError(
                f"waveform units have shape {tuple(units.shape)}, the encoder takes (N, samples) with at least {FIELD_SAMPLES} "
                "samples; use a WaveformTransform of that length"
            )
        convolved = self.convolutions(units.to(self.feature_projection.weight.dtype), num_samples)
        if convolution_gradient != 1.0 and convolved.requires_grad:
            convolved.register_hook(lambda gradient: gradient * convolution_gradient)
        hidden = self.dropout(self.feature_projection(self.feature_norm(convolved)))
        valid = None
        if masked is not None:
            hidden = torch.where(masked[..., None], self.mask_embedding.to(hidden.dtype), hidden)
        if num_samples is not None:
            valid = torch.arange(hidden.shape[1], device=hidden.device) < num_frames(num_samples)[:, None]
            hidden = hidden * valid[..., None]
        hidden = self.dropout(self.input_norm(hidden + self.position_convolution(hidden)))
        rule = AttentionRule.bidirectional(len(hidden), hidden.shape[1], hidden.device, valid)
        hidden = run_blocks(self.blocks, hidden, BlockContext(rule), num_blocks, self.layer_drop)
        if num_blocks is None:
            hidden = self.final_norm(hidden)
        return HubertStates(hidden if valid is None else hidden * valid[..., None], convolved, valid)

    def forward(self, units: Tensor, unit_item: Tensor, layout: tuple[MediaLayout, ...]) -> MediaFeatures:
        wanted = self.config.feature_layer
        num_blocks = None if wanted == "normed" else num_blocks_to_run(wanted, self.config.num_layers)
        states = self.states(units, real_samples(units, unit_item, layout), num_blocks=num_blocks)
        return MediaFeatures(states.hidden, unit_item, layout, states.valid)

    def masked_features(
        self,
        units: Tensor,
        unit_item: Tensor,
        layout: tuple[MediaLayout, ...],
        masked: Tensor | None,
        convolution_gradient: float = 1.0,
    ) -> tuple[MediaFeatures, Tensor]:
        """The last features with the `masked` frames [N, L] hidden, and what the convolutions gave, [N, L, width]."""
        states = self.states(units, real_samples(units, unit_item, layout), masked, convolution_gradient=convolution_gradient)
        return MediaFeatures(states.hidden, unit_item, layout, states.valid), states.convolved


def real_samples(units: Tensor, unit_item: Tensor, layout: tuple[MediaLayout, ...]) -> Tensor | None:
    """The real samples of each unit, [N]; None where no unit is padded."""
    whole = units.shape[1]
    counts = [whole if entry.num_samples is None else entry.num_samples for entry in layout]
    if all(count == whole for count in counts):
        return None
    return torch.tensor(counts, device=units.device)[unit_item.to(units.device)]


def _post_norm_block(c: Hubert.Config, layer: int) -> PostNormBlock:
    block = PostNormBlock(
        Attention(c.width, c.num_heads, layer=layer, dropout=c.dropout),
        nn.LayerNorm(c.width, eps=c.norm_eps),
        PostNormFeedForward(c.width, c.feed_forward_width, c.activation, c.norm_eps, c.dropout),
    )
    if c.dropout:
        block.dropping = nn.Dropout(c.dropout)
    return block
