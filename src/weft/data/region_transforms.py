"""Pictures that are given as regions: a picture with boxes, or the features that a detector gave before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from weft.core.conversation import Region
from weft.core.errors import ConfigError, DataError
from weft.core.layout import MediaLayout
from weft.data.images import ImageTransform
from weft.data.media_transform import MediaTransform, OpenedMedium
from weft.data.region_features import RegionFeatures


class PictureRegions(NamedTuple):
    """The source of a medium: a picture as `open_image` takes it, and boxes (x1, y1, x2, y2) in fractions of the original."""

    picture: Any
    boxes: tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True, kw_only=True)
class RegionTransform(MediaTransform):
    """How a picture with boxes reaches the encoder `Regions`: the picture as `view` says, the boxes where its pixels went.

    A box is cut where the view is; one of which the view shows nothing is refused.
    """

    view: ImageTransform = ImageTransform()

    @property
    def unit_shape(self) -> tuple[int, ...]:
        return self.view.unit_shape

    def open(self, source: Any, unit: MediaLayout) -> OpenedMedium:
        if not isinstance(source, PictureRegions) or not source.boxes:
            raise DataError(f"regions are given as PictureRegions(picture, boxes) with a box or more, got {_kind(source)}")
        for box in source.boxes:
            if len(Region(box).coordinates) != 4:
                raise DataError(f"a region to be encoded is a box of four fractions, got {box}")
        opened = self.view.open(source.picture, unit)
        assert opened.size is not None
        placed = [self._placed(box, opened.size, number) for number, box in enumerate(source.boxes)]
        return OpenedMedium(opened.units, MediaLayout.of_regions(placed), opened.size)

    def normalise(self, units: Sequence[np.ndarray]) -> Tensor:
        return self.view.normalise(units)

    def _placed(
        self, box: tuple[float, float, float, float], size: tuple[int, int], number: int
    ) -> tuple[float, float, float, float]:
        """The box in fractions of the unit."""
        left, top, right, bottom = self.view.shown(size)
        x1, x2 = (min(max((x * size[0] - left) / (right - left), 0.0), 1.0) for x in box[::2])
        y1, y2 = (min(max((y * size[1] - top) / (bottom - top), 0.0), 1.0) for y in box[1::2])
        if x1 >= x2 or y1 >= y2:
            raise DataError(
                f"box {number}, {box}, lies in the part of the picture that is cropped away; "
                "pad_to_square=True or resize='direct' keep the whole picture"
            )
        return x1, y1, x2, y2


@dataclass(frozen=True, kw_only=True)
class RegionFeatureTransform(MediaTransform):
    """How detected features reach the encoder `DetectedRegions`: at most `num_regions`, the first of more.

    `global_region` puts a region of the whole picture before them, the mean of those that are kept; it counts among
    `num_regions` (ViLBERT, arXiv:1908.02265), and a medium's targets begin with one for it.
    """

    feature_width: int = 2048
    num_regions: int = 36
    global_region: bool = False

    def __post_init__(self) -> None:
        if self.feature_width < 1 or self.num_regions < 1 + self.global_region:
            raise ConfigError(
                f"region features need a width and room for a region, got feature_width {self.feature_width}, num_regions "
                f"{self.num_regions}{' with one of the whole picture' if self.global_region else ''}"
            )

    @property
    def unit_shape(self) -> tuple[int, int]:
        return (self.num_regions, self.feature_width)

    def open(self, source: Any, unit: MediaLayout) -> OpenedMedium:
        if not isinstance(source, RegionFeatures):
            raise DataError(
                f"detected regions are given as RegionFeatures, which a file of features gives, got {_kind(source)}"
            )
        features = source.features[: self.num_regions - self.global_region].astype(np.float32)
        if features.shape[1] != self.feature_width:
            raise DataError(
                f"the regions of {source.image_id!r} have features of width {features.shape[1]}, the transform takes "
                f"{self.feature_width}; set feature_width of transform and encoder to the file's"
            )
        boxes = source.boxes[: len(features)].tolist()
        if self.global_region:
            features, boxes = np.concatenate((features.mean(0, keepdims=True), features)), [[0.0, 0.0, 1.0, 1.0], *boxes]
        return OpenedMedium(features[None], MediaLayout.of_regions((x1, y1, x2, y2) for x1, y1, x2, y2 in boxes), source.size)

    def normalise(self, units: Sequence[np.ndarray]) -> Tensor:
        padded = torch.zeros(len(units), *self.unit_shape)
        for row, features in zip(padded, units, strict=True):
            row[: len(features)] = torch.from_numpy(features)
        return padded


def _kind(source: Any) -> str:
    return "no box" if isinstance(source, PictureRegions) else f"a {type(source).__name__}"
