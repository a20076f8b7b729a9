"""The audio encoder of Whisper, arXiv:2212.04356."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch.nn.functional as F
from torch import Tensor, nn

from weft.core.attention_rule import AttentionRule
from weft.core.errors import ConfigError, DataError
from weft.core.interfaces import ModalityEncoder
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.layers.sinusoids import sinusoids
from weft.layers.slots import BlockContext
from weft.layers.transformer import pre_norm_blocks, run_blocks


class Whisper(ModalityEncoder):
    """Two convolutions over a log-mel spectrogram, the second with stride 2, fixed sinusoids, and pre-norm blocks.

    A unit is a clip of fixed length (30 s), padded with silence that belongs to it; the features are the last hidden state
    after the final norm, one for every 20 ms. The positions are a constant and no parameter; `num_constants` counts them.

    Shapes: units [N, num_mels, 2 * num_frames] -> values [N, num_frames, C].
    Source: Whisper, arXiv:2212.04356.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ModalityEncoder.Config):
        modality: ClassVar[str] = "audio"

        num_mels: int = 80
        num_frames: int = 1500
        width: int = 384
        num_layers: int = 4
        num_heads: int = 6
        feed_forward_width: int = 1536
        activation: str = "gelu"
        norm_eps: float = 1e-5

        def __post_init__(self) -> None:
            if self.width % 2 or self.width < 4:
                raise ConfigError(f"sines and cosines share the width, so it is even and at least 4, got {self.width}")

        def build(self) -> Whisper:
            return Whisper(self)

        @property
        def output_width(self) -> int:
            return self.width

        @property
        def unit_shape(self) -> tuple[int, int]:
            return (self.num_mels, 2 * self.num_frames)

        @property
        def omitted(self) -> Mapping[str, int]:
            """The decoder: as deep as the encoder, with cross-attention, over texts of 448 tokens; its table is its head."""
            vocabulary = 51_866 if self.num_mels == 128 else 51_865
            attention, norm = 4 * self.width**2 + 3 * self.width, 2 * self.width
            feed_forward = (2 * self.width + 1) * self.feed_forward_width + self.width
            layers = self.num_layers * (2 * attention + feed_forward + 3 * norm)
            return {"decoder": (vocabulary + 448) * self.width + layers + norm}

        @property
        def num_constants(self) -> int:
            """Values of the position table, which published counts of parameters include."""
            return self.num_frames * self.width

        def layout(self) -> MediaLayout:
            """One row of features in time."""
            return MediaLayout(1, self.num_frames)

        @classmethod
        def tiny(cls) -> Self:
            return cls(num_mels=8, num_frames=16, width=32, num_layers=2, num_heads=2, feed_forward_width=64)

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            shapes = {  # width, layers, mel bands
                "tiny": (384, 4, 80),
                "base": (512, 6, 80),
                "small": (768, 12, 80),
                "medium": (1024, 24, 80),
                "large": (1280, 32, 80),
                "large-v2": (1280, 32, 80),
                "large-v3": (1280, 32, 128),
            }
            return {
                name: cls(width=width, num_layers=layers, num_heads=width // 64, feed_forward_width=4 * width, num_mels=mels)
                for name, (width, layers, mels) in shapes.items()
            }

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        c = config
        # the published code starts convolutions and linear layers as PyTorch does
        self.input_convolution = nn.Conv1d(c.num_mels, c.width, kernel_size=3, padding=1)
        self.halving_convolution = nn.Conv1d(c.width, c.width, kernel_size=3, stride=2, padding=1)
        self.position_embedding: Tensor
        self.register_buffer("position_embedding", sinusoids(c.num_frames, c.width))
        self.blocks = pre_norm_blocks(
            c.width, c.num_layers, c.num_heads, c.feed_forward_width, c.activation, c.norm_eps, key_bias=False
        )
        self.final_norm = nn.LayerNorm(c.width, eps=c.norm_eps)

    def forward(self, units: Tensor, unit_item: Tensor, layout: tuple[MediaLayout, ...]) -> MediaFeatures:
        if units.shape[1:] != self.config.unit_shape:
            mels, frames = self.config.unit_shape
            raise DataError(
                f"audio units have shape {tuple(units.shape)}, the encoder takes (N, {mels}, {frames}); set the processor's "
                f"AudioTransform to num_mels={mels}, clip_seconds={frames / 100:g}"
            )
        hidden = F.gelu(self.input_convolution(units.to(self.input_convolution.weight.dtype)))
        hidden = F.gelu(self.halving_convolution(hidden)).transpose(1, 2) + self.position_embedding
        rule = AttentionRule.bidirectional(len(hidden), hidden.shape[1], hidden.device)
        return MediaFeatures(self.final_norm(run_blocks(self.blocks, hidden, BlockContext(rule))), unit_item, layout)
