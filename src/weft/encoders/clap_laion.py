"""The audio tower of LAION's CLAP, arXiv:2211.06687: a wrapper around the HTSAT of the `transformers` library."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from weft.core.errors import ConfigError, DataError, MissingLibrary
from weft.core.interfaces import ModalityEncoder
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.layers.projection_heads import HeadKind, projection_head


class ClapLaionWrapper(ModalityEncoder):
    """A Swin transformer over a log-mel spectrogram that is folded into a square; the tower itself is `transformers`' class.

    Time is stretched to `spec_size` squared / `num_mels` frames and cut into pieces that are laid one above the other. Features
    are the last grid with the pieces put side by side again, frequency by time. `pool` gives their mean and, with
    `embedding_width`, maps it with the head of CLAP. The fusion of several crops of a long clip is left out: a unit is one
    spectrogram.

    Shapes: units [N, num_mels, num_frames] -> values [N, F * T, C], row by row; `pool` gives [N, C], or [N, E] with the head.
    Raises: MissingLibrary where `transformers` is not installed.
    Source: CLAP, arXiv:2211.06687; HTSAT, arXiv:2202.00874.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ModalityEncoder.Config):
        """`width` is that of the first stage; every further stage doubles it and halves the grid."""

        modality: ClassVar[str] = "audio"
        library: ClassVar[str] = "transformers"

        num_mels: int = 64
        num_frames: int = 1001
        spec_size: int = 256
        patch_size: int = 4
        window_size: int = 8
        width: int = 96
        depths: tuple[int, ...] = (2, 2, 6, 2)
        num_heads: tuple[int, ...] = (4, 8, 16, 32)
        feed_forward_ratio: float = 4.0
        embedding_width: int | None = 512
        head: HeadKind = "two_layer"
        norm_eps: float = 1e-5

        def __post_init__(self) -> None:
            if not self.depths or len(self.depths) != len(self.num_heads):
                raise ConfigError(f"every stage has a depth and heads, got depths={self.depths}, num_heads={self.num_heads}")
            if any((self.width * 2**stage) % heads for stage, heads in enumerate(self.num_heads)):
                raise ConfigError(f"the stages' widths, from {self.width} on, do not split into {self.num_heads} heads")
            if self.spec_size % self.num_mels or self.spec_size % (self.num_pieces * self.stride):
                raise ConfigError(
                    f"spec_size {self.spec_size} must be a multiple of num_mels {self.num_mels} and hold a grid of whole "
                    f"pieces; choose a multiple of {self.num_pieces * self.stride}"
                )
            if self.num_frames > self.spec_size * self.num_pieces:
                raise ConfigError(
                    f"num_frames={self.num_frames} do not fit into {self.num_pieces} pieces of {self.spec_size} frames; "
                    "shorten the clip"
                )

        def build(self) -> ClapLaionWrapper:
            return ClapLaionWrapper(self)

        @property
        def num_pieces(self) -> int:
            """Into how many pieces of time the spectrogram is cut."""
            return max(self.spec_size // self.num_mels, 1)

        @property
        def stride(self) -> int:
            """Pixels of the square that one cell of the last grid stands for."""
            return self.patch_size * 2 ** (len(self.depths) - 1)

        @property
        def output_width(self) -> int:
            return self.width * 2 ** (len(self.depths) - 1)

        @property
        def pooled_width(self) -> int:
            return self.output_width if self.embedding_width is None else self.embedding_width

        @property
        def num_parameters(self) -> int:
            """Those of the tower and its head, by arithmetic: building it takes seconds to load a library."""
            patches = (self.patch_size**2 + 3) * self.width
            stages = zip(self.depths, self.num_heads, (self.width * 2**stage for stage in range(len(self.depths))), strict=True)
            blocks = sum(depth * self._block(width, heads) for depth, heads, width in stages)
            merging = sum(8 * (width + 1) * width for width in (self.width * 2**stage for stage in range(len(self.depths) - 1)))
            norms = 2 * self.num_mels + 2 * self.output_width
            return patches + blocks + merging + norms + self._head

        def _block(self, width: int, num_heads: int) -> int:
            hidden = int(width * self.feed_forward_ratio)
            attention = 4 * width * (width + 1) + (2 * self.window_size - 1) ** 2 * num_heads
            return attention + 4 * width + (2 * width + 1) * hidden + width

        @property
        def _head(self) -> int:
            """Two matrices; of the one kind of head both have a bias, behind the other's stands a norm."""
            return 0 if self.embedding_width is None else (self.output_width + self.embedding_width + 2) * self.embedding_width

        @property
        def omitted(self) -> Mapping[str, int]:
            return {} if self.embedding_width else {"head": dataclasses.replace(self, embedding_width=512)._head}

        @property
        def unit_shape(self) -> tuple[int, int]:
            return (self.num_mels, self.num_frames)

        def layout(self) -> MediaLayout:
            """Frequency by time."""
            side = self.spec_size // self.stride
            return MediaLayout(side // self.num_pieces, side * self.num_pieces)

        @classmethod
        def tiny(cls) -> Self:
            return cls(
                num_mels=16, num_frames=60, spec_size=32, window_size=4, width=16, depths=(2, 2), num_heads=(2, 4),
                embedding_width=24,
            )  # fmt: skip

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            return {"htsat-unfused": cls()}

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.tower = _tower(config)
        # the published code starts the head as PyTorch does
        self.head = projection_head(config.head, config.output_width, config.embedding_width)

    def run(self, units: Tensor) -> Any:
        """What the tower gives: `last_hidden_state` [N, C, F, T] and `pooler_output` [N, C]."""
        if units.dim() != 3 or units.shape[1:] != self.config.unit_shape:
            mels, frames = self.config.unit_shape
            raise DataError(
                f"audio units have shape {tuple(units.shape)}, the encoder takes (N, {mels}, {frames}); set the processor's "
                f"ClapAudioTransform to num_mels={mels} and a clip of {frames} frames"
            )
        dtype = next(self.tower.parameters()).dtype
        return self.tower(input_features=units.to(dtype).transpose(1, 2).unsqueeze(1))

    def forward(self, units: Tensor, unit_item: Tensor, layout: tuple[MediaLayout, ...]) -> MediaFeatures:
        return MediaFeatures(self.run(units).last_hidden_state.flatten(2).transpose(1, 2), unit_item, layout)

    def pool(self, units: Tensor) -> Tensor:
        return self.head(self.run(units).pooler_output)


def _tower(c: ClapLaionWrapper.Config) -> nn.Module:
    try:
        from transformers import ClapAudioConfig, ClapAudioModel
    except ImportError as error:
        raise MissingLibrary("the audio tower of LAION's CLAP", "transformers", "hf") from error
    # dropout, 0.1 in the published training of the transformer, is left out as in Weft's own encoders
    config = ClapAudioConfig(
        num_mel_bins=c.num_mels, spec_size=c.spec_size, patch_size=c.patch_size, patch_stride=(c.patch_size,) * 2,
        window_size=c.window_size, patch_embeds_hidden_size=c.width, depths=list(c.depths),
        num_attention_heads=list(c.num_heads), num_hidden_layers=len(c.depths), hidden_size=c.output_width,
        mlp_ratio=c.feed_forward_ratio, layer_norm_eps=c.norm_eps, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    tower: nn.Module = ClapAudioModel(config).audio_encoder
    return tower
