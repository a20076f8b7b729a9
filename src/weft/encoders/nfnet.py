"""NFNet, a convolutional network without normalisation layers, arXiv:2102.06171."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Literal, Self

from torch import Tensor, nn

from weft.core.errors import ConfigError, DataError
from weft.core.interfaces import ModalityEncoder
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.layers.normalizer_free_block import NormalizerFreeBlock, deviations
from weft.layers.precision import working_precision
from weft.layers.scaled_convolution import ScaledConvolution, scaled_activation

CLASSES = 1000  # of ImageNet
REDUCTION = 32  # pixels along one side of a feature position
RESOLUTIONS = {"f0": (192, 256), "f1": (224, 320), "f2": (256, 352), "f3": (320, 416), "f4": (384, 512), "f5": (416, 544)}
RESOLUTIONS |= {"f6": (448, 576)}  # trained and tested at


class Nfnet(ModalityEncoder):
    """A residual network of four stages whose last grid, a 32nd of the picture's side, is the features.

    The weights fit every resolution; `image_size` sets the one that the layout promises. `pool` averages the final grid, as the
    published classifier does; classifier and its dropout are no part of the encoder. Stochastic depth acts in training mode.
    Activation and the floor under a kernel's variance are those of the published JAX code. The port of the weights in timm
    (`dm_nfnet_f*`; its `nfnet_f*` are another network) takes the exact GELU and adds 1e-5 to the variance: on a fresh F0 this
    moves features of up to 4.4 by 0.003 and by 0.17; with both set as here the two agree within 1e-5.

    Shapes: units [N, 3, S, S] -> values [N, G * G, C] with G = ceil(S / 32), positions row by row; `pool` [N, E].
    Raises: DataError for units of another size.
    Source: arXiv:2102.06171; as the frozen encoder of Flamingo (size F6): arXiv:2204.14198.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ModalityEncoder.Config):
        """`feature_layer` is "final", the grid after the last convolution, or "last_stage", the one before it, half as wide.

        `depths` and `widths` count blocks and channels of the stages; `stochastic_depth` is the rate towards which that of the
        blocks rises from zero.
        """

        image_size: int = 192
        stem_width: int = 128
        depths: tuple[int, ...] = (1, 2, 6, 3)
        widths: tuple[int, ...] = (256, 512, 1536, 1536)
        group_width: int = 128
        activation: str = "gelu_tanh"
        alpha: float = 0.2
        stochastic_depth: float = 0.25
        feature_layer: Literal["final", "last_stage"] = "final"

        def __post_init__(self) -> None:
            if self.image_size < 1 or self.stem_width < 8 or not len(self.depths) == len(self.widths) == 4:
                raise ConfigError(
                    "an NFNet takes pictures of at least one pixel, a stem of at least 8 channels and four stages; got "
                    f"image_size={self.image_size}, stem_width={self.stem_width}, depths={self.depths}, widths={self.widths}"
                )
            if not 0 <= self.stochastic_depth < 1:
                raise ConfigError(f"stochastic_depth is a rate below 1, got {self.stochastic_depth}")

        def build(self) -> Nfnet:
            return Nfnet(self)

        @property
        def output_width(self) -> int:
            return self.pooled_width if self.feature_layer == "final" else self.widths[-1]

        @property
        def pooled_width(self) -> int:
            return 2 * self.widths[-1]

        def layout(self) -> MediaLayout:
            side = -(-self.image_size // REDUCTION)
            return MediaLayout(side, side)

        @property
        def omitted(self) -> Mapping[str, int]:
            return {"classifier": (self.pooled_width + 1) * CLASSES}

        @classmethod
        def tiny(cls) -> Self:
            """Grids of 24, 12, 6, 3 and 2 positions along a side."""
            return cls(image_size=48, stem_width=16, depths=(1, 1, 2, 1), widths=(32, 32, 64, 64), group_width=16)

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            """F0 to F6, each at the resolutions that it was trained and tested at."""
            return {
                f"{name}-{resolution}": cls(image_size=resolution, depths=(factor, 2 * factor, 6 * factor, 3 * factor))
                for factor, (name, resolutions) in enumerate(RESOLUTIONS.items(), 1)
                for resolution in resolutions
            }

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        c = config
        self.activation = scaled_activation(c.activation)
        stem = (3, c.stem_width // 8, c.stem_width // 4, c.stem_width // 2, c.stem_width)
        self.stem = nn.ModuleList(
            ScaledConvolution(before, after, 3, stride)
            for (before, after), stride in zip(pairwise(stem), (2, 1, 1, 2), strict=True)
        )
        self.stages = nn.Sequential()
        places = count()
        for stage, expected in enumerate(deviations(c.depths, c.alpha)):
            before = (c.stem_width, *c.widths)[stage]
            blocks = (
                NormalizerFreeBlock(
                    c.widths[stage] if block else before,
                    c.widths[stage],
                    stride=2 if stage and not block else 1,
                    group_width=c.group_width,
                    activation_name=c.activation,
                    alpha=c.alpha,
                    input_deviation=deviation,
                    drop_rate=c.stochastic_depth * next(places) / sum(c.depths),
                )
                for block, deviation in enumerate(expected)
            )
            self.stages.append(nn.Sequential(*blocks))
        self.final = ScaledConvolution(c.widths[-1], c.pooled_width)

    def last_stage(self, units: Tensor) -> Tensor:
        """The grid that leaves the last stage: [N, C, G, G].

        Raises: DataError for units of another size.
        """
        if units.shape[1:] != self.config.unit_shape:
            side = self.config.image_size
            raise DataError(
                f"image units have shape {tuple(units.shape)}, the encoder takes (N, 3, {side}, {side}); set the processor's "
                "image size to the encoder's, or the encoder's image_size to the picture's (its weights fit every resolution)"
            )
        hidden = working_precision(units.to(self.final.weight.dtype))
        first, *others = self.stem
        hidden = first(hidden)
        for convolution in others:
            hidden = convolution(self.activation(hidden))
        return self.stages(hidden)

    def final_grid(self, units: Tensor) -> Tensor:
        """The grid after the last convolution: [N, E, G, G]."""
        return self.activation(self.final(self.last_stage(units)))

    def forward(self, units: Tensor, unit_item: Tensor, layout: tuple[MediaLayout, ...]) -> MediaFeatures:
        grid = self.final_grid(units) if self.config.feature_layer == "final" else self.last_stage(units)
        return MediaFeatures(grid.flatten(2).transpose(1, 2), unit_item, layout)

    def pool(self, units: Tensor) -> Tensor:
        return self.final_grid(units).mean((2, 3))
