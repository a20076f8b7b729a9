"""Regions of a picture as features: pooled from the grid of any image encoder, or as a detector gave them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from weft.core.box_geometry import BoxKind
from weft.core.catalogue import parts
from weft.core.errors import ConfigError, DataError
from weft.core.interfaces import ModalityEncoder
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.layers.box_numbers import Joined, WithBoxNumbers, joined_width
from weft.layers.feature_grid import check_grid
from weft.layers.roi_align import bin_weights

WHOLE = (0.0, 0.0, 1.0, 1.0)


class Regions(ModalityEncoder):
    """One feature for each box of a picture: the mean of what RoIAlign reads from the grid of an image encoder.

    The boxes come with the layout. The grid is taken to cover the picture; no order of regions is known to the features.

    Shapes: units [N, 3, H, W] -> values [N, R, C] with R the most regions of a picture, zeros where `valid` is false.
    Source: RoIAlign, Mask R-CNN, arXiv:1703.06870; regions as a model's input, ViLBERT, arXiv:1908.02265.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ModalityEncoder.Config):
        """`pool_size` bins a side, each read at `sampling` places a side (0: as many as it has cells), make up one mean.

        `geometry` None leaves out where the box is; else its numbers are `joined` to the feature: "added" by a projection of
        their own, or "side_by_side" on channels. `num_regions` is the usual number, costs are counted for it.
        """

        image: ModalityEncoder.Config = field(default_factory=lambda: _clip_vision()())
        pool_size: int = 7
        sampling: int = 2
        geometry: BoxKind | None = None
        joined: Joined = "added"
        num_regions: int = 36

        def __post_init__(self) -> None:
            if self.image.modality != "image":
                raise ConfigError(f"regions are read from pictures; {self.image.part_name} takes {self.image.modality}")
            check_grid(self.image.layout(), "Regions")
            if min(self.pool_size, self.num_regions) < 1 or self.sampling < 0:
                raise ConfigError(
                    f"Regions need one bin and one region or more, and sampling of 0 or more, got pool_size {self.pool_size}, "
                    f"num_regions {self.num_regions}, sampling {self.sampling}"
                )

        def build(self) -> Regions:
            return Regions(self)

        @property
        def output_width(self) -> int:
            return joined_width(self.image.output_width, self.geometry, self.joined)

        @property
        def unit_shape(self) -> tuple[int, ...]:
            return self.image.unit_shape

        def layout(self) -> MediaLayout:
            """The usual number of regions, each the whole picture."""
            return MediaLayout.of_regions((WHOLE,) * self.num_regions)

        @classmethod
        def tiny(cls) -> Self:
            return cls(image=_clip_vision().tiny(), pool_size=3, geometry="corners_area", num_regions=4)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.image = config.image.build()
        self.box = WithBoxNumbers(config.image.output_width, config.geometry, config.joined)

    def forward(self, units: Tensor, unit_item: Tensor, layout: tuple[MediaLayout, ...]) -> MediaFeatures:
        grid = self.config.image.layout()
        boxes, valid = boxes_of(layout)
        features: MediaFeatures = self.image(units, unit_item, (grid,) * len(layout))
        cells = self.cell_weights(boxes, grid).to(units.device)[unit_item]
        values = (cells @ features.values.to(cells.dtype)).to(features.values.dtype)
        return with_valid(self.box(values, boxes.to(units.device)[unit_item]), valid, unit_item, layout)

    def cell_weights(self, boxes: Tensor, grid: MediaLayout) -> Tensor:
        """How much each cell of the grid counts in each region. Shapes: [..., 4] -> [..., L]."""
        bins, sampling = self.config.pool_size, self.config.sampling
        # the mean over all bins is the product of the means over rows and over columns of bins
        rows = bin_weights(boxes[..., 1], boxes[..., 3], grid.height, bins, sampling).mean(-2)
        columns = bin_weights(boxes[..., 0], boxes[..., 2], grid.width, bins, sampling).mean(-2)
        return (rows[..., :, None] * columns[..., None, :]).flatten(-2)


class DetectedRegions(ModalityEncoder):
    """Features that a detector computed before, one a box; they may be joined by where their box is.

    With `geometry="corners_size"` and `joined="side_by_side"` they are OSCAR's 2054 numbers. No order of regions is known.

    Shapes: units [N, num_regions, F], zeros behind a picture's last region -> values [N, R, C] with R the most regions of a
    picture, zeros where `valid` is false.
    Source: features of bottom-up attention, arXiv:1707.07998; LXMERT, arXiv:1908.07490; OSCAR, arXiv:2004.06165.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ModalityEncoder.Config):
        """`feature_width` of the detector; `num_regions` the most that a picture has; `geometry`, `joined` as in `Regions`."""

        feature_width: int = 2048
        num_regions: int = 36
        geometry: BoxKind | None = None
        joined: Joined = "side_by_side"

        def __post_init__(self) -> None:
            if min(self.feature_width, self.num_regions) < 1:
                raise ConfigError(
                    "detected regions need a width and a number of 1 or more, got "
                    f"feature_width {self.feature_width}, num_regions {self.num_regions}"
                )

        def build(self) -> DetectedRegions:
            return DetectedRegions(self)

        @property
        def output_width(self) -> int:
            return joined_width(self.feature_width, self.geometry, self.joined)

        @property
        def unit_shape(self) -> tuple[int, int]:
            return (self.num_regions, self.feature_width)

        def layout(self) -> MediaLayout:
            """As many regions as a picture may have, each the whole picture."""
            return MediaLayout.of_regions((WHOLE,) * self.num_regions)

        @classmethod
        def tiny(cls) -> Self:
            return cls(feature_width=16, num_regions=4, geometry="corners", joined="added")

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.box = WithBoxNumbers(config.feature_width, config.geometry, config.joined)

    def forward(self, units: Tensor, unit_item: Tensor, layout: tuple[MediaLayout, ...]) -> MediaFeatures:
        boxes, valid = boxes_of(layout)
        if units.shape[1] < boxes.shape[1] or units.shape[2] != self.config.feature_width:
            raise DataError(
                f"region units have shape {tuple(units.shape)} for {boxes.shape[1]} boxes; the encoder takes features of width "
                f"{self.config.feature_width}, one a box"
            )
        values = units[:, : boxes.shape[1]]
        if self.box.projection is not None:
            values = values.to(self.box.projection.weight.dtype)
        return with_valid(self.box(values, boxes.to(units.device)[unit_item]), valid, unit_item, layout)


def _clip_vision() -> Any:
    """The config class of the usual encoder, by its name; encoders do not import each other."""
    return vars(parts("encoders")["clip_vision"])["Config"]


def boxes_of(layout: tuple[MediaLayout, ...]) -> tuple[Tensor, Tensor | None]:
    """The boxes of every item, padded with the whole picture, and which of them are real (None: all).

    On the CPU, where layouts are, so that nothing waits for the accelerator.

    Shapes: [items, R, 4] float32 in fractions of the unit, [items, R]. Raises: DataError for a layout without regions.
    """
    regions = [() if each.regions is None else each.regions for each in layout]
    if without := [number for number, each in enumerate(layout) if each.regions is None]:
        raise DataError(f"item {without[0]} has no boxes in its layout; open its pictures with a transform of regions")
    counts = [len(each) for each in regions]
    most = max(counts, default=0)
    padded = [[*each, *(WHOLE,) * (most - len(each))] for each in regions]
    boxes = torch.tensor(padded, dtype=torch.float32, device="cpu").view(len(layout), most, 4)
    if min(counts, default=most) == most:
        return boxes, None
    return boxes, torch.arange(most, device="cpu") < torch.tensor(counts, device="cpu")[:, None]


def with_valid(values: Tensor, valid: Tensor | None, unit_item: Tensor, layout: tuple[MediaLayout, ...]) -> MediaFeatures:
    """The features of every unit, zeros where its item has no region. Shapes: values [N, R, C], valid [items, R]."""
    if valid is not None:
        valid = valid.to(values.device)[unit_item]
        values = values.masked_fill(~valid[..., None], 0)
    return MediaFeatures(values, unit_item, layout, valid)
