"""The audio tower of LAION's CLAP, arXiv:2211.06687: a wrapper around the HTSAT of the `transformers` library."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from weft.core.errors import ConfigError, DataError, MissingLibrary
from weft.core.interfaces import ModalityEncoder
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.layers.branch_dropping import checked_rate
from weft.layers.projection_heads import HeadKind, projection_head

NUM_VIEWS = 4
"""Spectrograms that are fused: the whole recording, and three clips of it."""


class ClapLaionWrapper(ModalityEncoder):
    """A Swin transformer over a log-mel spectrogram that is folded into a square; the tower itself is `transformers`' class.

    Time is stretched to `spec_size` squared / `num_mels` frames and cut into pieces that are laid one above the other. Features
    are the last grid with the pieces put side by side again, frequency by time. `pool` gives their mean and, with
    `embedding_width`, maps it with the head of CLAP.

    With `fused` a unit is four spectrograms and a plane that is zero where the recording is no longer than a clip. Of a longer
    one the patches of the first spectrogram, which shows all of it, are fused by attention with those of its three clips; of
    the others only the first is read. As published, where a batch holds no longer one, training takes one unit at random for
    one, so that every step trains the fusion.

    Shapes: units [N, num_mels, num_frames], or [N, 5, num_mels, num_frames] with `fused` -> values [N, F * T, C], row by row;
    `pool` gives [N, C], or [N, E] with the head.
    Raises: MissingLibrary where `transformers` is not installed.
    Source: CLAP, arXiv:2211.06687; HTSAT, arXiv:2202.00874; the fusion arXiv:2009.14082.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ModalityEncoder.Config):
        """`width` is that of the first stage; every further stage doubles it and halves the grid. In training `dropout` is that
        of what the feed-forwards add, `stochastic_depth` the chance of the last block's halves to be lost, which rises to it in
        even steps from zero. Both are as in LAION's training code; the configs of its files have the library's, 0.1 and 0."""

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
        fused: bool = False
        dropout: float = 0.0
        stochastic_depth: float = 0.1

        def __post_init__(self) -> None:
            checked_rate(self.dropout, "dropout")
            checked_rate(self.stochastic_depth, "stochastic_depth")
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
            if self.fused and self.spec_size < 3 * self.patch_size:
                raise ConfigError(
                    f"of a square of {self.spec_size} pixels no patch of a clip is cut, {self.patch_size} by "
                    f"{3 * self.patch_size} pixels; choose a larger spec_size"
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
            return patches + blocks + merging + norms + self._fusion + self._head

        def _block(self, width: int, num_heads: int) -> int:
            hidden = int(width * self.feed_forward_ratio)
            attention = 4 * width * (width + 1) + (2 * self.window_size - 1) ** 2 * num_heads
            return attention + 4 * width + (2 * width + 1) * hidden + width

        @property
        def _fusion(self) -> int:
            """A patch layer of the clips, and attention over what is near and over all: two layers each, with a norm behind."""
            narrow = self.width // 4
            attention = 2 * (2 * self.width * narrow + 3 * narrow + 3 * self.width)
            return attention + (3 * self.patch_size**2 + 1) * self.width if self.fused else 0

        @property
        def _head(self) -> int:
            """Two matrices; of the one kind of head both have a bias, behind the other's stands a norm."""
            return 0 if self.embedding_width is None else (self.output_width + self.embedding_width + 2) * self.embedding_width

        @property
        def omitted(self) -> Mapping[str, int]:
            return {} if self.embedding_width else {"head": dataclasses.replace(self, embedding_width=512)._head}

        @property
        def unit_shape(self) -> tuple[int, ...]:
            spectrogram = (self.num_mels, self.num_frames)
            return (NUM_VIEWS + 1, *spectrogram) if self.fused else spectrogram

        def layout(self) -> MediaLayout:
            """Frequency by time."""
            side = self.spec_size // self.stride
            return MediaLayout(side // self.num_pieces, side * self.num_pieces)

        @classmethod
        def tiny(cls) -> Self:
            return cls(
                num_mels=16, num_frames=60, spec_size=32, window_size=4, width=16, depths=(2, 2), num_heads=(2, 4),
                embedding_width=24, stochastic_depth=0.0,
            )  # fmt: skip

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            return {"htsat-unfused": cls(), "htsat-fused": cls(fused=True)}

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.tower = _tower(config)
        # the published code starts the head as PyTorch does
        self.head = projection_head(config.head, config.output_width, config.embedding_width)

    def run(self, units: Tensor) -> Any:
        """What the tower gives: `last_hidden_state` [N, C, F, T] and `pooler_output` [N, C]."""
        c = self.config
        if units.shape[1:] != c.unit_shape:
            raise DataError(
                f"audio units have shape {tuple(units.shape)}, the encoder takes (N, {', '.join(map(str, c.unit_shape))}); "
                f"set the processor's ClapAudioTransform to num_mels={c.num_mels} and a clip of {c.num_frames} frames, "
                f"fused={c.fused}"
            )
        dtype = next(self.tower.parameters()).dtype
        if not c.fused:
            return self.tower(input_features=units.to(dtype).mT.unsqueeze(1))
        views, plane = units.split((NUM_VIEWS, 1), 1)
        with _every_recording_long() if units.is_meta else nullcontext():
            return self.tower(input_features=views.to(dtype).mT, is_longer=self.longer(plane))

    def longer(self, plane: Tensor) -> Tensor:
        """Which recordings' clips are fused. Shapes: the last plane [N, 1, num_mels, num_frames] -> [N] bool."""
        longer = plane.flatten(1).any(1)
        if self.training:
            drawn = torch.randint(len(longer), (1,), device=longer.device)
            longer = longer | (~longer.any() & (torch.arange(len(longer), device=longer.device) == drawn))
        return longer

    def forward(self, units: Tensor, unit_item: Tensor, layout: tuple[MediaLayout, ...]) -> MediaFeatures:
        return MediaFeatures(self.run(units).last_hidden_state.flatten(2).transpose(1, 2), unit_item, layout)

    def pool(self, units: Tensor) -> Tensor:
        return self.head(self.run(units).pooler_output)


class LoneBatchNorm(nn.BatchNorm2d):
    """Batch norm that takes the only value of a channel in training too: twice, as LAION's code does where one clip is long.

    Shapes: [N, C, H, W] -> the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x[:, 0].numel() == 1:
            return super().forward(x.expand(2, -1, -1, -1))[:1]
        return super().forward(x)


def _every_recording_long() -> AbstractContextManager[None]:
    """Inside the block the library, which asks how many recordings are long, finds that all are: what costs are counted for."""
    from torch.fx.experimental import _config

    settings: Any = _config
    return cast(AbstractContextManager[None], settings.patch(meta_nonzero_assume_all_nonzero=True))


def _tower(c: ClapLaionWrapper.Config) -> nn.Module:
    try:
        from transformers import ClapAudioConfig, ClapAudioModel
    except ImportError as error:
        raise MissingLibrary("the audio tower of LAION's CLAP", "transformers", "hf") from error
    config = ClapAudioConfig(
        num_mel_bins=c.num_mels, spec_size=c.spec_size, patch_size=c.patch_size, patch_stride=(c.patch_size,) * 2,
        window_size=c.window_size, patch_embeds_hidden_size=c.width, depths=list(c.depths),
        num_attention_heads=list(c.num_heads), num_hidden_layers=len(c.depths), hidden_size=c.output_width,
        mlp_ratio=c.feed_forward_ratio, layer_norm_eps=c.norm_eps, hidden_dropout_prob=c.dropout,
        drop_path_rate=c.stochastic_depth, enable_fusion=c.fused, fusion_type="aff_2d" if c.fused else None,
    )  # fmt: skip
    tower: Any = ClapAudioModel(config).audio_encoder
    for block in (block for stage in tower.layers for block in stage.blocks):
        # the library drops only the attention half of a block, LAION's code either half
        block.output.dropout = nn.Sequential(block.output.dropout, block.drop_path)
    if c.fused:
        over_all = tower.patch_embed.fusion_model.global_att
        for place, layer in enumerate(over_all):
            if isinstance(layer, nn.BatchNorm2d):
                over_all[place] = LoneBatchNorm(layer.num_features)
    return cast(nn.Module, tower)
