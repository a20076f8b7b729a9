"""The preprocessing that the configs of `timm` and `open_clip` state: how their models are tested."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from weft.checkpoints.open_clip_config import OPEN_CLIP_CONFIG
from weft.checkpoints.weight_files import read_json
from weft.core.errors import CheckpointError
from weft.data.images import CLIP_MEAN, CLIP_STD, FILTERS, IMAGENET_MEAN, IMAGENET_STD, EvenCentreTransform, Filter

_RESIZE: dict[str, Literal["shortest", "direct"]] = {"shortest": "shortest", "center": "shortest", "squash": "direct"}
_CROP_SHARE = 0.875  # of `timm`, where a config states none


def read_test_transform(folder: Path, size: int) -> EvenCentreTransform | None:
    """How a folder's config says that pictures of `size` pixels are made; None where it does not say.

    Where both libraries have a config, it is `open_clip`'s, with which the model was trained. `timm` resizes to more than it
    keeps, by `crop_pct`; the size is the one that the encoder is built for, `timm`'s `input_size`.

    Raises: CheckpointError for preprocessing that Weft does not have.
    """
    for name, part, read in ((OPEN_CLIP_CONFIG, "preprocess_cfg", _open_clip), ("config.json", "pretrained_cfg", _timm)):
        if (folder / name).is_file() and isinstance(stated := read_json(folder / name).get(part), dict):
            return read(stated, size, f"{folder / name}: {part}")
    return None


def _open_clip(stated: Mapping[str, Any], size: int, where: str) -> EvenCentreTransform:
    if stated.get("size", size) not in (size, [size, size]):
        raise CheckpointError(f"{where} has size={stated['size']!r}, the encoder takes {size} pixels")
    return _transform({"mean": CLIP_MEAN, "std": CLIP_STD, **stated}, size, "resize_mode", "shortest", None, where)


def _timm(stated: Mapping[str, Any], size: int, where: str) -> EvenCentreTransform:
    share = stated.get("crop_pct") or _CROP_SHARE
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise CheckpointError(f"{where} has crop_pct={share!r}; it is a share of the side, above 0 and at most 1")
    resized = math.floor(size / share)
    stated = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, **stated}
    return _transform(stated, size, "crop_mode", "center", None if resized == size else resized, where)


def _transform(
    stated: Mapping[str, Any], size: int, mode: str, usual: str, shorter_side: int | None, where: str
) -> EvenCentreTransform:
    filter: Filter = stated.get("interpolation") or "bicubic"
    resize = stated.get(mode) or usual
    numbers = {name: stated[name] for name in ("mean", "std")}
    fits = {
        "interpolation": str(filter) in FILTERS,
        mode: str(resize) in _RESIZE,
        **{name: _three_numbers(value, above=0 if name == "std" else -math.inf) for name, value in numbers.items()},
    }
    if unfit := [f"{name}={stated.get(name)!r}" for name, right in fits.items() if not right]:
        raise CheckpointError(
            f"{where} has {', '.join(unfit)}; Weft resizes with {' or '.join(FILTERS)} weights, keeps the aspect or squashes, "
            "and takes a mean and a deviation for each of 3 channels"
        )
    return EvenCentreTransform(
        size=size,
        resize=_RESIZE[resize],
        shorter_side=shorter_side,
        filter=filter,
        mean=tuple(numbers["mean"]),
        std=tuple(numbers["std"]),
    )


def _three_numbers(value: Any, above: float) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(v, int | float) and v > above for v in value)
