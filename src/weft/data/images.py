"""From a picture to pixel values: open safely, resize, crop or pad, normalise. Pillow and numpy only."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from weft.core.errors import ConfigError, DataError, unknown_name
from weft.core.layout import MediaLayout
from weft.data.media_transform import MediaTransform, OpenedMedium

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Filter = Literal["bicubic", "bilinear"]
FILTERS: dict[Filter, Image.Resampling] = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
MAX_PIXELS = 89_478_485
"""A larger picture is taken for a decompression bomb; Pillow's own first limit."""


def open_image(source: Any, name: str | None = None) -> Image.Image:
    """A picture as 8-bit RGB, upright, from a path, the bytes of a file, a PIL image, or an array (height, width, 3) uint8.

    What is transparent shows white, as in the processors of `transformers`; without a ground, black ink on nothing would be a
    black picture. Of an animation it is the first frame. Grey of 16 bits keeps its range: 65535 is white.

    `name` is what errors call the picture; by default its path or its kind.

    Raises: DataError where it is missing, empty, truncated, no image, too large, or of values without a known range.
    """
    name = name or _name(source)
    if isinstance(source, np.ndarray):
        return Image.fromarray(_checked_array(source, name))
    try:
        return _read(source, name)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"no image file {name}") from None
    except Image.DecompressionBombError:
        raise DataError(f"{name} is refused: it unpacks to more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise DataError(f"{name} is no image of a known format") from None
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them meet
        reason = str(error).splitlines()[0] if str(error) and " at 0x" not in str(error) else type(error).__name__
        raise DataError(f"{name} cannot be read as an image: {reason}") from None


@dataclass(frozen=True, kw_only=True)
class ImageTransform(MediaTransform):
    """How one picture becomes [3, size, size] float values.

    `resize`: "shortest" scales the shorter side to `size` and crops the centre (CLIP), "direct" ignores the aspect (SigLIP).
    `shorter_side` scales it to more than the crop keeps (DINOv2 and ResNet: 256 for 224), "direct" both sides (NFNet); None: to
    `size`. A centre that begins between two pixels begins at the lower one, as in `transformers`.
    `pad_to_square` first centres the picture on a square filled with int(255 * mean) (LLaVA-1.5).
    """

    size: int = 224
    resize: Literal["shortest", "direct"] = "shortest"
    shorter_side: int | None = None
    filter: Filter = "bicubic"
    pad_to_square: bool = False
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        if self.size < 1 or not all(s > 0 for s in self.std):
            raise ConfigError(f"an image transform needs a size and deviations above 0, got size {self.size}, std {self.std}")
        if self.filter not in FILTERS:
            raise unknown_name("filter", self.filter, FILTERS)
        if self.shorter_side is not None and self.shorter_side < self.size:
            raise ConfigError(f"shorter_side={self.shorter_side} is what size={self.size} is cut out of; make it larger")

    @property
    def unit_shape(self) -> tuple[int, int, int]:
        return (3, self.size, self.size)

    def open(self, source: Any, unit: MediaLayout) -> OpenedMedium:
        """One unit of pixels; an array of the final size is taken as it is."""
        if isinstance(source, np.ndarray) and source.shape == (self.size, self.size, 3):
            return OpenedMedium(self.pixels(source)[None], unit, (self.size, self.size))
        image = open_image(source)
        return OpenedMedium(self.pixels(image)[None], unit, image.size)

    def pixels(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """The picture at its final size, before normalisation: (size, size, 3) uint8.

        An array that has that size already comes back as it is.
        """
        if isinstance(image, np.ndarray):
            if image.shape == (self.size, self.size, 3) and image.dtype == np.uint8:
                return image
            image = open_image(image)
        if self.pad_to_square:
            image = self._padded(image)
        width, height = image.size
        target = self._resized(width, height)
        left, top = (self._crop_start(side) for side in target)
        kernel = FILTERS[self.filter]
        if target[0] * target[1] > MAX_PIXELS:
            # a strip of 1 x 60,000 pixels would grow to 336 x 20 million: compute only what the crop keeps
            x, y = width / target[0], height / target[1]
            box = (left * x, top * y, min((left + self.size) * x, width), min((top + self.size) * y, height))
            return np.asarray(image.resize((self.size, self.size), kernel, box=box))
        if target != image.size:
            image = image.resize(target, kernel)
        if target != (self.size, self.size):
            image = image.crop((left, top, left + self.size, top + self.size))
        return np.asarray(image)

    def shown(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """What the unit shows of a picture (width, height), so that boxes can go where pixels go.

        (x1, y1, x2, y2) in the picture's pixels, beyond its edges where it is padded.
        """
        width, height = size
        x = y = 0
        if self.pad_to_square:
            side = max(size)
            x, y, width, height = -((side - width) // 2), -((side - height) // 2), side, side
        target = self._resized(width, height)
        scale_x, scale_y = width / target[0], height / target[1]
        left, top = self._crop_start(target[0]) * scale_x + x, self._crop_start(target[1]) * scale_y + y
        return left, top, left + self.size * scale_x, top + self.size * scale_y

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of a picture before the centre is cut out."""
        short = self.shorter_side or self.size
        if self.resize == "direct":
            return short, short
        long = int(short * max(width, height) / min(width, height))
        return (short, long) if width <= height else (long, short)

    def _crop_start(self, side: int) -> int:
        """Where the centre that is cut out of a side begins."""
        return (side - self.size) // 2

    def normalise(self, pixels: Sequence[np.ndarray] | np.ndarray) -> Tensor:
        """Shapes: N pictures (size, size, 3) uint8 -> [N, 3, size, size] float32."""
        stacked = torch.from_numpy(np.stack(pixels) if not isinstance(pixels, np.ndarray) else np.array(pixels))
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        values = stacked.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return values.mul_((1 / (255 * std))[:, None, None]).sub_((mean / std)[:, None, None])

    def apply(self, image: Image.Image | np.ndarray) -> Tensor:
        """Shapes: one picture -> [3, size, size] float32."""
        return self.normalise([self.pixels(image)])[0]

    def _padded(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        if width == height:
            return image
        side = max(width, height)
        if side * side > 4 * MAX_PIXELS:
            raise DataError(f"a picture of {width} x {height} is too long to be padded to a square")
        red, green, blue = (int(255 * m) for m in self.mean)
        square = Image.new("RGB", (side, side), (red, green, blue))
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        return square


@dataclass(frozen=True, kw_only=True)
class EvenCentreTransform(ImageTransform):
    """The same as `timm` and `open_clip` publish it: a centre that begins between two pixels begins at the even one."""

    def _crop_start(self, side: int) -> int:
        return round((side - self.size) / 2)


def _name(source: Any) -> str:
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return f"an image of {len(source)} bytes"
    return str(getattr(source, "filename", "") or f"a {type(source).__name__}")


def _read(source: Any, name: str) -> Image.Image:
    """Open and decode; a file that was opened here is closed again, whatever happens."""
    if isinstance(source, Image.Image):
        return _upright_rgb(_small_enough(source, name), name)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decoded(io.BytesIO(source), name)
    if not isinstance(source, str | Path):
        raise DataError(f"an image is a path, bytes, a PIL image or an array (height, width, 3) uint8, got {name}")
    if Path(source).is_dir():
        raise DataError(f"{name} is a folder, not an image file")
    with Path(source).open("rb") as file:
        return _decoded(file, name)


def _decoded(file: IO[bytes], name: str) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow only warns of is refused here with the file's name, or does no harm
        return _upright_rgb(_small_enough(Image.open(file), name), name)


def _small_enough(image: Image.Image, name: str) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{name} is refused: {image.width} x {image.height} is more than {MAX_PIXELS:,} pixels")
    if min(image.size) < 1:
        raise DataError(f"{name} has no pixels")
    return image


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _eight_bit(image, name)
    if image.has_transparency_data:
        image = image.convert("RGBA")  # a palette with transparency keeps its colours this way
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bit(image: Image.Image, name: str) -> Image.Image:
    """Grey values of more than 8 bits keep their range: 65535 becomes 255, where a plain conversion would clip at 255.

    Values that all lie within 0 and 255 are taken for 8 bits in a wide file, floats within 0 and 1 for fractions.
    """
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 65535):  # also where a value is not a number
        raise DataError(f"{name} has grey values from {low:g} to {high:g}; expected 0 to 65535, scale them first")
    top = 1.0 if image.mode == "F" and high <= 1 else 65535.0 if high > 255 else 255.0
    return Image.fromarray((values * (255.0 / top) + 0.5).astype(np.uint8)).convert("RGB")


def _checked_array(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise DataError(f"an image array is (height, width, 3) uint8, got {name} {array.shape} {array.dtype}")
    return array
