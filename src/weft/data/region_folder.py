"""Region features as a folder of safetensors files: read a picture at a time, a third smaller than base64.

A folder holds `regions-00000.safetensors` and on, each with the pictures that follow those of the file before. A file of I
pictures with R regions in all has the metadata `format` = `weft.region_features` and `version` = `1`, and the tensors

- `image_ids` [bytes] uint8: a JSON list of the I names, in UTF-8
- `first` [I + 1] int64: picture i has the regions from `first[i]` to `first[i + 1]`
- `sizes` [I, 2] int32: width and height in pixels
- `boxes` [R, 4] float32: x1, y1, x2, y2 in fractions of the picture
- `features` [R, F] float32 or float16
- `objects`, `attributes` [R] int64; `object_scores`, `attribute_scores` [R] float32
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from weft.core.errors import ConfigError, DataError
from weft.data.region_features import LABELS, RegionFeatures, RegionTsv

FORMAT = {"format": "weft.region_features", "version": "1"}
Precision = Literal["float32", "float16"]
_REGIONS = ("boxes", "features", *LABELS)
_NAMES = {"image_ids", "first", "sizes", *_REGIONS}


class _Place(NamedTuple):
    path: Path
    first: int
    last: int
    size: tuple[int, int]


class RegionFolder:
    """The regions of pictures by name, each read from its file when it is asked for.

    Raises: DataError for a folder or a file that is none of region features.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._places: dict[str, _Place] = {}
        widths = set()
        for path in sorted(self.folder.glob("regions-*.safetensors")):
            for image_id, place, width in _index(path):
                if image_id in self._places:
                    raise DataError(f"{path} and {self._places[image_id].path} both hold the picture {image_id!r}")
                self._places[image_id] = place
                widths.add(width)
        if not self._places:
            raise DataError(f"no file regions-*.safetensors with pictures in {self.folder}")
        if len(widths) > 1:
            raise DataError(f"the files of {self.folder} hold features of several widths: {sorted(widths)}")
        self.feature_width: int = widths.pop()

    @property
    def image_ids(self) -> tuple[str, ...]:
        """The pictures in the folder's order."""
        return tuple(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[RegionFeatures]:
        return map(self.__getitem__, self._places)

    def __getitem__(self, image_id: str) -> RegionFeatures:
        """The regions of a picture. Raises: DataError where the folder has none."""
        if image_id not in self._places:
            raise DataError(f"{self.folder} has no picture {image_id!r} among its {len(self)}")
        place = self._places[image_id]
        with _opened(place.path) as file:
            arrays = {name: file.get_slice(name)[place.first : place.last] for name in _REGIONS}
        try:
            return RegionFeatures(image_id, place.size, **arrays)
        except DataError as error:
            raise DataError(f"{place.path}: {error}") from None


def write_regions(
    folder: Path | str, pictures: Iterable[RegionFeatures], precision: Precision = "float32", pictures_per_file: int = 1000
) -> int:
    """Write pictures as a folder that `RegionFolder` reads; returns how many. It appears whole or not at all.

    One file's pictures are held in memory at a time. float16 halves the folder and keeps three digits.

    Raises: DataError where the folder exists already, two pictures share a name, or a feature does not fit into float16.
    """
    if pictures_per_file < 1:
        raise ConfigError(f"a file of regions holds one picture or more, got pictures_per_file={pictures_per_file}")
    folder = Path(folder)
    if folder.exists():
        raise DataError(f"{folder} exists already; name a new folder or remove it")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        remaining = iter(pictures)
        for number in count():
            if not (some := list(islice(remaining, pictures_per_file))):
                break
            _write(partial / f"regions-{number:05d}.safetensors", some, precision)
        written = len(RegionFolder(partial))
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return written


def convert_tsv(tsv: Path | str, folder: Path | str, precision: Precision = "float32", pictures_per_file: int = 1000) -> int:
    """Rewrite LXMERT's tab-separated features as a folder of safetensors files; returns the number of pictures.

    Raises: DataError with file and line for a row that cannot be used; nothing is left behind then.
    """
    return write_regions(folder, RegionTsv(tsv), precision, pictures_per_file)


def _write(path: Path, pictures: Sequence[RegionFeatures], precision: Precision) -> None:
    from safetensors.numpy import save_file

    if len(widths := {each.features.shape[1] for each in pictures}) > 1:
        raise DataError(f"pictures from {pictures[0].image_id!r} on have features of several widths: {sorted(widths)}")
    arrays = {name: np.concatenate([getattr(each, name) for each in pictures]) for name in _REGIONS}
    with np.errstate(over="ignore"):
        arrays["features"] = arrays["features"].astype(precision)
    if not np.isfinite(arrays["features"]).all():
        raise DataError(f"a feature from picture {pictures[0].image_id!r} on does not fit into {precision}; write float32")
    names = json.dumps([each.image_id for each in pictures], ensure_ascii=False).encode()
    arrays["image_ids"] = np.frombuffer(names, np.uint8)
    arrays["first"] = np.cumsum([0, *(len(each.boxes) for each in pictures)], dtype=np.int64)
    arrays["sizes"] = np.array([each.size for each in pictures], np.int32)
    save_file(arrays, path, metadata=FORMAT)


def _index(path: Path) -> Iterator[tuple[str, _Place, int]]:
    """Name, place and feature width of every picture of a file."""
    with _opened(path) as file:
        if file.metadata() != FORMAT or set(file.keys()) != _NAMES:
            raise DataError(f"{path} is no file of region features: it needs the metadata {FORMAT} and {sorted(_NAMES)}")
        first, sizes = file.get_tensor("first"), file.get_tensor("sizes")
        shapes = {name: file.get_slice(name).get_shape() for name in _REGIONS}
        names = file.get_tensor("image_ids").tobytes()
    try:
        image_ids = json.loads(names)
    except ValueError:
        raise DataError(f"{path}: image_ids is no JSON list in UTF-8") from None
    whole = len(first) == len(sizes) + 1 == len(image_ids) + 1 and first[0] == 0 and (np.diff(first) > 0).all()
    if not whole or any(shape[0] != first[-1] for shape in shapes.values()) or len(shapes["features"]) != 2:
        raise DataError(f"{path} is damaged: its {len(image_ids)} pictures, `first` and the regions do not agree")
    for number, image_id in enumerate(image_ids):
        size = int(sizes[number, 0]), int(sizes[number, 1])
        yield image_id, _Place(path, int(first[number]), int(first[number + 1]), size), shapes["features"][1]


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="numpy")
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read as region features: {error}") from None
