"""One picture as several units: the choice of a grid, resizing, padding, cutting, and a view of the whole."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from weft.core import config
from weft.core.errors import ConfigError
from weft.core.layout import MediaLayout, tile_grids
from weft.data.images import FILTERS, ImageTransform, open_image
from weft.data.media_transform import MediaTransform, OpenedMedium


@dataclass(frozen=True, kw_only=True)
class Tiling(config.Config, ABC):
    """How a picture is laid on a whole number of tiles; `thumbnail` is where the view of the whole stands."""

    thumbnail: ClassVar[Literal["first", "last"]]

    @abstractmethod
    def lay(self, image: Image.Image, view: ImageTransform) -> tuple[Image.Image, np.ndarray | None]:
        """The canvas, its sides multiples of `view.size`, and the thumbnail's pixels, None where there is none."""


@dataclass(frozen=True, kw_only=True)
class AnyResolution(Tiling):
    """Of some (rows, columns), the one that shows most pixels and then wastes fewest; the aspect is kept on black.

    The first of equal grids wins. `transformers` reads the published pairs as (height, width), which is the order here; LLaVA's
    own code reads them as (width, height), so that a picture which fits two grids alike, such as a square of one tile, lies
    upright there and level here.

    Source: LLaVA-NeXT, after LLaVA-1.5-HD, arXiv:2310.03744.
    """

    thumbnail: ClassVar[Literal["first", "last"]] = "first"

    grids: tuple[tuple[int, int], ...] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))

    def __post_init__(self) -> None:
        if not self.grids or any(min(grid) < 1 for grid in self.grids):
            raise ConfigError(f"AnyResolution needs grids of (rows, columns), each at least 1, got {self.grids}")

    def lay(self, image: Image.Image, view: ImageTransform) -> tuple[Image.Image, np.ndarray | None]:
        rows, columns = self.grid(image.size, view.size)
        width, height = columns * view.size, rows * view.size
        across, down = width / image.width, height / image.height
        if across < down:
            size = (width, min(math.ceil(image.height * across), height))
        else:
            size = (min(math.ceil(image.width * down), width), height)
        canvas = Image.new("RGB", (width, height))
        canvas.paste(image.resize(size, Image.Resampling.BICUBIC), ((width - size[0]) // 2, (height - size[1]) // 2))
        return canvas, view.pixels(image)

    def grid(self, picture_size: tuple[int, int], tile_size: int) -> tuple[int, int]:
        """The (rows, columns) for a picture of (width, height)."""
        width, height = picture_size

        def shown_and_wasted(grid: tuple[int, int]) -> tuple[int, int]:
            rows, columns = grid
            scale = min(columns * tile_size / width, rows * tile_size / height)
            shown = min(int(width * scale) * int(height * scale), width * height)
            return shown, shown - rows * columns * tile_size**2

        return max(self.grids, key=shown_and_wasted)


@dataclass(frozen=True, kw_only=True)
class DynamicTiling(Tiling):
    """The grid of `min_tiles` to `max_tiles` tiles whose aspect is nearest to the picture's, which is stretched to fill it.

    Of equal aspects the larger wins where the picture has more than half of its pixels. More than one tile have a thumbnail
    behind them.

    Source: InternVL 1.5, arXiv:2404.16821: at most 12 tiles in training, up to 40 in use.
    """

    thumbnail: ClassVar[Literal["first", "last"]] = "last"

    min_tiles: int = 1
    max_tiles: int = 12

    def __post_init__(self) -> None:
        if not 1 <= self.min_tiles <= self.max_tiles:
            raise ConfigError(f"DynamicTiling needs 1 <= min_tiles <= max_tiles, got {self.min_tiles} and {self.max_tiles}")

    def lay(self, image: Image.Image, view: ImageTransform) -> tuple[Image.Image, np.ndarray | None]:
        rows, columns = self.grid(image.size, view.size)
        canvas = image.resize((columns * view.size, rows * view.size), Image.Resampling.BICUBIC)
        return canvas, view.pixels(image) if rows * columns > 1 else None

    def grid(self, picture_size: tuple[int, int], tile_size: int) -> tuple[int, int]:
        """The (rows, columns) for a picture of (width, height)."""
        width, height = picture_size
        every = range(1, self.max_tiles + 1)
        grids = [(r, c) for c in every for r in every if self.min_tiles <= r * c <= self.max_tiles]
        best, nearest = (1, 1), math.inf
        for rows, columns in sorted(grids, key=lambda grid: grid[0] * grid[1]):
            distance = abs(width / height - columns / rows)
            filled = width * height > 0.5 * tile_size**2 * rows * columns
            if distance < nearest or (distance == nearest and filled):
                best, nearest = (rows, columns), distance
        return best


@dataclass(frozen=True, kw_only=True)
class HighDefinition(Tiling):
    """As many tiles along the picture's longer side as `max_tiles` allow; the aspect is kept, the other side padded with white.

    The thumbnail is the padded canvas itself, interpolated without smoothing as the published code does, but rounded to 8 bits.

    Source: InternLM-XComposer2-4KHD, arXiv:2404.06512: at most 55 tiles.
    """

    thumbnail: ClassVar[Literal["first", "last"]] = "first"

    max_tiles: int = 55

    def __post_init__(self) -> None:
        if self.max_tiles < 1:
            raise ConfigError(f"HighDefinition needs at least one tile, got max_tiles={self.max_tiles}")

    def lay(self, image: Image.Image, view: ImageTransform) -> tuple[Image.Image, np.ndarray | None]:
        upright = image.height > image.width
        level = image.transpose(Image.Transpose.TRANSPOSE) if upright else image
        canvas = self.lay_level(level, view.size)
        canvas = canvas.transpose(Image.Transpose.TRANSPOSE) if upright else canvas
        pixels = torch.from_numpy(np.array(canvas)).permute(2, 0, 1)[None].float()
        small = torch.nn.functional.interpolate(pixels, (view.size, view.size), mode="bicubic", align_corners=False)
        return canvas, small[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()

    def lay_level(self, image: Image.Image, tile_size: int) -> Image.Image:
        """The canvas of a picture at least as wide as high."""
        width = self.columns(image.width / image.height) * tile_size
        height = max(1, int(width / (image.width / image.height)))
        canvas = Image.new("RGB", (width, -(-height // tile_size) * tile_size), (255, 255, 255))
        canvas.paste(image.resize((width, height), Image.Resampling.BILINEAR), (0, (canvas.height - height) // 2))
        return canvas

    def columns(self, ratio: float) -> int:
        """Tiles along the longer side of a picture that is `ratio` times as long as it is short."""
        return max(n for n in range(1, self.max_tiles + 1) if n * math.ceil(n / ratio) <= self.max_tiles)


@dataclass(frozen=True, kw_only=True)
class FittedCanvas(Tiling):
    """The grid of at most `max_tiles` tiles on which the picture is enlarged least, or else shrunk least; without a thumbnail.

    The aspect is kept. A picture smaller than its canvas grows only as far as one tile, lies in the upper left corner, and the
    rest is black. Of equal scales the smaller canvas wins.

    Source: Llama 3.2 Vision, arXiv:2407.21783: at most 4 tiles, bilinear.
    """

    thumbnail: ClassVar[Literal["first", "last"]] = "first"

    max_tiles: int = 4

    def __post_init__(self) -> None:
        if self.max_tiles < 1:
            raise ConfigError(f"FittedCanvas needs at least one tile, got max_tiles={self.max_tiles}")

    def lay(self, image: Image.Image, view: ImageTransform) -> tuple[Image.Image, np.ndarray | None]:
        rows, columns = self.grid(image.size, view.size)
        canvas = Image.new("RGB", (columns * view.size, rows * view.size))
        canvas.paste(image.resize(self.fitted(image.size, canvas.size, view.size), FILTERS[view.filter]))
        return canvas, None

    def grid(self, picture_size: tuple[int, int], tile_size: int) -> tuple[int, int]:
        """The (rows, columns) for a picture of (width, height)."""
        width, height = picture_size
        grids = tile_grids(self.max_tiles)
        scales = [min(rows * tile_size / height, columns * tile_size / width) for rows, columns in grids]
        best = min((scale for scale in scales if scale >= 1), default=max(scales))
        fitting = (grid for grid, scale in zip(grids, scales, strict=True) if scale == best)
        return min(fitting, key=lambda grid: grid[0] * grid[1])

    def fitted(self, picture_size: tuple[int, int], canvas_size: tuple[int, int], tile_size: int) -> tuple[int, int]:
        """The picture's size on its canvas; all three are (width, height) in pixels."""
        width, height = (min(max(s, tile_size), c) for s, c in zip(picture_size, canvas_size, strict=True))
        across, down = width / picture_size[0], height / picture_size[1]
        if across < down:
            return width, min(max(math.floor(picture_size[1] * across), 1), height)
        return min(max(math.floor(picture_size[0] * down), 1), width), height


@dataclass(frozen=True, kw_only=True)
class PictureTiles(MediaTransform):
    """A picture cut into tiles of `view.size`, row by row, with the whole at that size before or behind them.

    Without `thumbnail` there are only the tiles, as where another stream shows the whole.

    Shapes: one picture -> [num_tiles, 3, size, size], one more with its thumbnail.
    """

    view: ImageTransform = field(default_factory=lambda: ImageTransform(size=336, resize="direct"))
    tiling: Tiling = field(default_factory=AnyResolution)
    thumbnail: bool = True

    @property
    def unit_shape(self) -> tuple[int, int, int]:
        return self.view.unit_shape

    def open(self, source: Any, unit: MediaLayout) -> OpenedMedium:
        image = open_image(source)
        canvas, thumbnail = self.tiling.lay(image, self.view)
        size, units = self.view.size, [cut(canvas, self.view.size)]
        if not self.thumbnail:
            thumbnail = None
        if thumbnail is not None:
            units.insert(0 if self.tiling.thumbnail == "first" else 1, thumbnail[None])
        layout = replace(
            unit,
            tile_rows=canvas.height // size,
            tile_columns=canvas.width // size,
            thumbnail="none" if thumbnail is None else self.tiling.thumbnail,
            picture_size=image.size,
        )
        return OpenedMedium(np.concatenate(units), layout, image.size)

    def usual_layout(self, unit: MediaLayout) -> MediaLayout:
        """Of a square picture that fills two by two tiles."""
        side = 2 * self.view.size
        return self.open(Image.new("RGB", (side, side)), unit).layout

    def normalise(self, units: Sequence[np.ndarray]) -> Tensor:
        return self.view.normalise(units)


def cut(canvas: Image.Image, size: int) -> np.ndarray:
    """Tiles row by row: [rows * columns, size, size, 3]."""
    pixels = np.asarray(canvas).reshape(canvas.height // size, size, canvas.width // size, size, 3)
    return pixels.swapaxes(1, 2).reshape(-1, size, size, 3)
