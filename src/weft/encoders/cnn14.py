"""CNN14: convolutions over a log-mel spectrogram, arXiv:1912.10211; the audio tower of Microsoft's CLAP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Self

import torch.nn.functional as F
from torch import Tensor, nn

from weft.core.errors import ConfigError, DataError
from weft.core.interfaces import ModalityEncoder
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.layers.batch_norm import BatchNorm
from weft.layers.branch_dropping import checked_rate
from weft.layers.projection_heads import HeadKind, projection_head


class ConvolutionBlock(nn.Module):
    """Two 3x3 convolutions without bias, each with its norm and ReLU. Shapes: [N, A, H, W] -> [N, B, H, W]."""

    def __init__(self, inputs: int, outputs: int, config: Cnn14.Config) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.first_norm = BatchNorm(outputs, config.norm_eps, config.frozen_statistics)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = BatchNorm(outputs, config.norm_eps, config.frozen_statistics)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(x)))


CLASSES = 527  # of AudioSet


class Cnn14(ModalityEncoder):
    """A batch norm for every mel band, then blocks of two convolutions; all but the last halve time and frequency.

    A feature is the mean over frequency of one step of the last map: one for every 32 frames. `pool` adds the largest and the
    mean of each channel over time and goes through a linear layer and, with `embedding_width`, the head of CLAP.

    Shapes: units [N, num_mels, T] -> values [N, T // 32, C]; `pool` gives [N, C], or [N, E] with the head.
    Source: PANNs, arXiv:1912.10211; the head CLAP, arXiv:2206.04769.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ModalityEncoder.Config):
        """`num_frames` is the length that `layout` speaks of, 690 for 5 s of hops of 320 samples at 44.1 kHz.
        `frozen_statistics` keeps the norms' running statistics in training too; published training lets them follow. In
        training `dropout` is that of what leaves each block, `pooled_dropout` that before and behind the linear layer of
        `pool`, `head_dropout` that of a residual head."""

        modality: ClassVar[str] = "audio"

        num_mels: int = 64
        num_frames: int = 690
        widths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
        embedding_width: int | None = None
        head: HeadKind = "residual"
        frozen_statistics: bool = False
        norm_eps: float = 1e-5
        dropout: float = 0.2
        pooled_dropout: float = 0.5
        head_dropout: float = 0.5

        def __post_init__(self) -> None:
            for what in ("dropout", "pooled_dropout", "head_dropout"):
                checked_rate(getattr(self, what), what)
            if not self.widths:
                raise ConfigError("a CNN14 has at least one block; give widths")
            if min(self.num_mels, self.num_frames) < self.stride:
                raise ConfigError(
                    f"{len(self.widths)} blocks halve mels and frames to 1 / {self.stride}, so they take at least "
                    f"{self.stride} of each, got num_mels={self.num_mels}, num_frames={self.num_frames}"
                )

        def build(self) -> Cnn14:
            return Cnn14(self)

        @property
        def stride(self) -> int:
            """Frames that one feature stands for."""
            return 2 ** (len(self.widths) - 1)

        @property
        def output_width(self) -> int:
            return self.widths[-1]

        @property
        def pooled_width(self) -> int:
            return self.widths[-1] if self.embedding_width is None else self.embedding_width

        @property
        def unit_shape(self) -> tuple[int, int]:
            return (self.num_mels, self.num_frames)

        def layout(self) -> MediaLayout:
            """One row of features in time."""
            return MediaLayout(1, self.num_frames // self.stride)

        @property
        def omitted(self) -> Mapping[str, int]:
            """The classifier of sounds, which the files of PANNs and of CLAP hold."""
            return {"classifier": (self.widths[-1] + 1) * CLASSES}

        @classmethod
        def tiny(cls) -> Self:
            return cls(
                num_mels=8, num_frames=22, widths=(8, 16, 32), embedding_width=24,
                dropout=0.0, pooled_dropout=0.0, head_dropout=0.0,
            )  # fmt: skip

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            return {"panns": cls(), "clap-microsoft": cls(embedding_width=1024)}

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        c = config
        self.input_norm = BatchNorm(c.num_mels, c.norm_eps, c.frozen_statistics)
        self.blocks = nn.ModuleList(ConvolutionBlock(inputs, outputs, c) for inputs, outputs in pairwise((1, *c.widths)))
        self.dropout = nn.Dropout(c.dropout)
        self.pooled_linear = nn.Linear(c.output_width, c.output_width)
        self.pooled_dropout = nn.Dropout(c.pooled_dropout)
        self.initialise()
        # the published code starts the head as PyTorch does
        self.head = projection_head(c.head, c.output_width, c.embedding_width, c.head_dropout)

    def initialise(self) -> None:
        """The published start; norms begin at one and zero."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(self.pooled_linear.bias)

    def steps(self, units: Tensor) -> Tensor:
        """The last map, averaged over frequency: [N, C, T // 32]."""
        if units.dim() != 3 or units.shape[1:] != self.config.unit_shape:
            mels, frames = self.config.unit_shape
            raise DataError(
                f"audio units have shape {tuple(units.shape)}, the encoder takes (N, {mels}, {frames}); set the processor's "
                f"ClapAudioTransform to num_mels={mels} and a clip of {frames} frames"
            )
        bands = units.to(self.pooled_linear.weight.dtype).unsqueeze(-1)  # the norm's channels are the bands
        hidden = self.input_norm(bands).permute(0, 3, 2, 1)  # [N, 1, T, num_mels]: kernels stand time by frequency
        for number, block in enumerate(self.blocks, 1):
            hidden = block(hidden)
            if number < len(self.blocks):
                hidden = F.avg_pool2d(hidden, 2)
            hidden = self.dropout(hidden)
        return hidden.mean(3)

    def forward(self, units: Tensor, unit_item: Tensor, layout: tuple[MediaLayout, ...]) -> MediaFeatures:
        return MediaFeatures(self.steps(units).transpose(1, 2), unit_item, layout)

    def pool(self, units: Tensor) -> Tensor:
        steps = self.steps(units)
        pooled = self.pooled_dropout(steps.amax(2) + steps.mean(2))
        return self.head(self.pooled_dropout(F.relu(self.pooled_linear(pooled))))
