"""What token counts depend on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MediaLayout:
    """The feature grid of one medium: what `InputProjector.Config.num_tokens` needs and nothing else.

    Units: `height` and `width` count feature positions per unit (patches), `frames` counts units in time. A picture that was
    cut into `tile_rows` x `tile_columns` tiles has one unit for each, row by row, and where `thumbnail` says so one of the
    whole picture before or behind them; `picture_size` is the original's (width, height) in pixels, known where tiles were cut.
    `num_samples` counts the real samples of each unit of a waveform, what follows them is padding; None where all are real.
    """

    height: int
    width: int
    frames: int = 1
    tile_rows: int = 1
    tile_columns: int = 1
    thumbnail: Literal["none", "first", "last"] = "none"
    picture_size: tuple[int, int] | None = None
    num_samples: int | None = None

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
