"""From one medium to the units that an encoder takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from weft.core import config
from weft.core.layout import MediaLayout


class OpenedMedium(NamedTuple):
    """A medium as units of their final shape, before normalisation.

    Shapes: `units` [num_units, ...]. `size` is a picture's original (width, height), None for other media.
    """

    units: np.ndarray
    layout: MediaLayout
    size: tuple[int, int] | None


@dataclass(frozen=True, kw_only=True)
class MediaTransform(config.Config, ABC):
    """How the media of one stream are read, brought to the encoder's shape and normalised."""

    @property
    @abstractmethod
    def unit_shape(self) -> tuple[int, ...]:
        """The shape of one unit as the encoder takes it."""

    @abstractmethod
    def open(self, source: Any, unit: MediaLayout) -> OpenedMedium:
        """Read a medium; `unit` is the feature grid of one unit, as the encoder gives it.

        Raises: DataError where it cannot be read.
        """

    def usual_layout(self, unit: MediaLayout) -> MediaLayout:
        """The layout of a medium as this stream usually has it, known without reading one: what costs are counted for."""
        return unit

    @abstractmethod
    def normalise(self, units: Sequence[np.ndarray]) -> Tensor:
        """Shapes: N units -> [N, *unit_shape] float32."""
