"""What token counts depend on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal


@dataclass(frozen=True)
class MediaLayout:
    """The feature grid of one medium: what `InputProjector.Config.num_tokens` needs and nothing else.

    Units: `height` and `width` count feature positions per unit (patches), `frames` counts units in time. A picture that was
    cut into `tile_rows` x `tile_columns` tiles has one unit for each, row by row, and where `thumbnail` says so one of the
    whole picture before or behind them; `picture_size` is the original's (width, height) in pixels, known where tiles were cut.
    `num_samples` counts the real samples of each unit of a waveform, what follows them is padding; None where all are real.
    `regions` are the boxes (x1, y1, x2, y2) of a medium that is given as regions, in fractions of its unit; its features are
    then a row, one a region.
    """

    height: int
    width: int
    frames: int = 1
    tile_rows: int = 1
    tile_columns: int = 1
    thumbnail: Literal["none", "first", "last"] = "none"
    picture_size: tuple[int, int] | None = None
    num_samples: int | None = None
    regions: tuple[tuple[float, float, float, float], ...] | None = None

    @staticmethod
    def of_regions(boxes: Iterable[tuple[float, float, float, float]]) -> MediaLayout:
        """The layout of a medium that becomes one feature a box."""
        regions = tuple(boxes)
        return MediaLayout(1, len(regions), regions=regions)

    @property
    def num_tiles(self) -> int:
        """Tiles of a picture, its thumbnail left out."""
        return self.tile_rows * self.tile_columns

    @property
    def num_units(self) -> int:
        """Units that the medium has: frames, or tiles and their thumbnail."""
        return self.frames * (self.num_tiles + (self.thumbnail != "none"))

    @property
    def positions(self) -> int:
        """Feature positions of the whole medium, class tokens left out."""
        return self.num_units * self.height * self.width


@cache
def tile_grids(max_tiles: int) -> tuple[tuple[int, int], ...]:
    """Every (rows, columns) of at most `max_tiles` tiles, in the order by which Llama 3.2 Vision numbers them from 1."""
    sides = range(1, max_tiles + 1)
    return tuple((rows, columns) for rows in sides for columns in sides if rows * columns <= max_tiles)
