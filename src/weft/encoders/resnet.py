"""Grid features of a bottleneck ResNet, arXiv:1512.03385."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Literal, Self

import torch.nn.functional as F
from torch import Tensor, nn

from weft.core.errors import ConfigError, DataError
from weft.core.interfaces import ModalityEncoder
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.layers.batch_norm import BatchNorm
from weft.layers.transformer import num_blocks_to_run

CLASSES = 1000  # of ImageNet
REDUCTION = 4


class NormedConvolution(nn.Module):
    """A convolution without bias, padded so that only the stride shrinks the grid, and its norm.

    Shapes: [N, A, H, W] -> [N, B, H / stride, W / stride], rounded up.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, config: Resnet.Config) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = BatchNorm(outputs, config.norm_eps, config.frozen_statistics)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.convolution(x))


class Bottleneck(nn.Module):
    """Narrow (1x1), look around (3x3), widen (1x1), and add the input, mapped where its shape differs.

    Shapes: [N, A, H, W] -> [N, B, H / stride, W / stride], rounded up.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, config: Resnet.Config) -> None:
        super().__init__()
        inner = outputs // REDUCTION
        first, second = (stride, 1) if config.stride_placement == "1x1" else (1, stride)
        self.narrow = NormedConvolution(inputs, inner, 1, first, config)
        self.look = NormedConvolution(inner, inner, 3, second, config)
        self.widen = NormedConvolution(inner, outputs, 1, 1, config)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else NormedConvolution(inputs, outputs, 1, stride, config)

    def forward(self, x: Tensor) -> Tensor:
        # In place on what a norm has just made: its gradient keeps its input, not its output.
        hidden = F.relu_(self.narrow(x))
        hidden = F.relu_(self.look(hidden))
        hidden = self.widen(hidden)
        return F.relu_(hidden.add_(self.shortcut(x)))


class Resnet(ModalityEncoder):
    """A residual convolutional network; its features are the cells of one stage's map, row by row.

    Pictures are normalised by ImageNet's mean and deviation.

    Shapes: units [N, 3, H, W] -> values [N, G * K, C]; for the last stage G = H / 32 and K = W / 32, rounded up, then divided
    by `grid_pool` and rounded down; `pool` gives the mean over the last map [N, C of the last stage].
    Source: arXiv:1512.03385; as grid features Pixel-BERT, arXiv:2004.00849, and SOHO, arXiv:2104.03135.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ModalityEncoder.Config):
        """`feature_layer` counts maps: 0 leaves the stem, k the k-th stage, -1 the last one, -2 the one before. Pictures are
        squares of `image_size` pixels, or `image_size` high and `image_width` wide.

        `stride_placement`: the convolution that halves a stage's grid, "3x3" in what is called version 1.5, which the files
        of today hold, "1x1" in the original paper. `grid_pool` takes the maximum over squares of that many cells (2 in
        Pixel-BERT). `frozen_statistics` keeps the norms' running statistics in training too; without it a feature depends on
        its neighbours in the batch, so that accumulated gradients are no longer those of the whole batch.
        """

        image_size: int = 224
        image_width: int | None = None
        depths: tuple[int, ...] = (3, 4, 6, 3)
        stem_width: int = 64
        widths: tuple[int, ...] = (256, 512, 1024, 2048)
        stride_placement: Literal["1x1", "3x3"] = "3x3"
        feature_layer: int = -1
        grid_pool: int = 1
        frozen_statistics: bool = True
        norm_eps: float = 1e-5

        def __post_init__(self) -> None:
            if not self.depths or len(self.depths) != len(self.widths) or min(self.depths) < 1:
                raise ConfigError(
                    f"each ResNet stage has a depth (1 or more) and a width, got depths {self.depths}, widths {self.widths}"
                )
            if any(width % REDUCTION for width in self.widths):
                raise ConfigError(f"a bottleneck is a quarter as wide as its stage, which does not divide widths {self.widths}")
            if not 1 <= self.grid_pool <= min(self._grid):
                height, width = self._grid
                raise ConfigError(f"grid_pool {self.grid_pool} does not fit the {height}x{width} grid; enlarge the picture")

        def build(self) -> Resnet:
            return Resnet(self)

        @property
        def num_stages(self) -> int:
            """Stages that lead to the features."""
            return num_blocks_to_run(self.feature_layer, len(self.depths))

        @property
        def output_width(self) -> int:
            return (self.stem_width, *self.widths)[self.num_stages]

        @property
        def pooled_width(self) -> int:
            return self.widths[-1]

        @property
        def unit_shape(self) -> tuple[int, int, int]:
            return (3, self.image_size, self.image_width or self.image_size)

        @property
        def _grid(self) -> tuple[int, int]:
            """Rows and columns of the map: the stem halves twice, every stage but the first once, rests rounded up."""
            stride = 2 ** (2 + max(self.num_stages - 1, 0))
            _, height, width = self.unit_shape
            return -(-height // stride), -(-width // stride)

        def layout(self) -> MediaLayout:
            height, width = self._grid
            return MediaLayout(height // self.grid_pool, width // self.grid_pool)

        @property
        def omitted(self) -> Mapping[str, int]:
            return {"classifier": (self.widths[-1] + 1) * CLASSES}

        @classmethod
        def tiny(cls) -> Self:
            return cls(image_size=48, depths=(1, 2), stem_width=8, widths=(16, 32))

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            return {"50": cls(), "101": cls(depths=(3, 4, 23, 3)), "152": cls(depths=(3, 8, 36, 3))}

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.stem = NormedConvolution(3, config.stem_width, 7, 2, config)
        widths = pairwise((config.stem_width, *config.widths))
        self.stages = nn.ModuleList(
            self._stage(inputs, outputs, depth, 1 if number == 0 else 2)
            for number, ((inputs, outputs), depth) in enumerate(zip(widths, config.depths, strict=True))
        )
        self.initialise()

    def _stage(self, inputs: int, outputs: int, depth: int, stride: int) -> nn.Sequential:
        rest = (Bottleneck(outputs, outputs, 1, self.config) for _ in range(depth - 1))
        return nn.Sequential(Bottleneck(inputs, outputs, stride, self.config), *rest)

    def initialise(self) -> None:
        """The published start; norms begin at one and zero."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def feature_map(self, units: Tensor, num_stages: int) -> Tensor:
        """The map after `num_stages` stages: [N, C, H, W]."""
        expected = self.config.unit_shape
        if units.shape[1:] != expected:
            raise DataError(
                f"image units have shape {tuple(units.shape)}, the encoder takes (N, {', '.join(map(str, expected))}); "
                "set the processor's image size to the encoder's"
            )
        hidden = F.relu_(self.stem(units.to(self.stem.convolution.weight.dtype)))
        hidden = F.max_pool2d(hidden, 3, 2, padding=1)
        for stage in islice(self.stages, num_stages):
            hidden = stage(hidden)
        return hidden

    def forward(self, units: Tensor, unit_item: Tensor, layout: tuple[MediaLayout, ...]) -> MediaFeatures:
        cells = self.feature_map(units, self.config.num_stages)
        if self.config.grid_pool > 1:
            cells = F.max_pool2d(cells, self.config.grid_pool)
        return MediaFeatures(cells.flatten(2).transpose(1, 2), unit_item, layout)

    def pool(self, units: Tensor) -> Tensor:
        return self.feature_map(units, len(self.stages)).mean((2, 3))
