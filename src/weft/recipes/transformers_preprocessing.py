"""The preprocessing that a folder in `transformers` layout states: its image processor or feature extractor as a transform."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from weft.checkpoints.weight_files import read_json
from weft.core.errors import CheckpointError
from weft.core.interfaces import ModalityEncoder
from weft.data.audio import AudioTransform, WaveformTransform
from weft.data.clap_audio import ClapAudioTransform
from weft.data.images import FILTERS, HALF, ImageTransform
from weft.data.log_mel import HOP_SAMPLES, SAMPLE_RATE_HZ, WINDOW_SAMPLES
from weft.data.media_transform import MediaTransform
from weft.data.tiles import FittedCanvas, PictureTiles
from weft.encoders.clap_laion import ClapLaionWrapper
from weft.encoders.cnn14 import Cnn14
from weft.encoders.dinov2 import Dinov2
from weft.encoders.hubert import Hubert
from weft.encoders.mllama import Mllama
from weft.encoders.resnet import Resnet
from weft.encoders.whisper import Whisper
from weft.recipes.timm_preprocessing import read_test_transform

BICUBIC = 3
_FILTER_NAMES = {int(number): name for name, number in FILTERS.items()}
_WARPED_FROM = 384  # from this side on a ConvNext processor ignores the aspect; below it crops


def preprocessing(folder: Path) -> dict[str, Any]:
    """The settings of a folder's image processor or feature extractor; empty where it has none."""
    saved: dict[str, Any] = {}
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            found = read_json(folder / name)
            inner = found.get("image_processor") or found.get("feature_extractor")
            saved |= inner or (found if name.startswith("pre") else {})
    return saved


def read_media_transform(folder: Path, encoder: ModalityEncoder.Config) -> tuple[MediaTransform | None, ModalityEncoder.Config]:
    """The transform of an encoder's media, and the encoder at the size that the transform gives.

    DINOv2 and ResNet take pictures of other sizes than their configs name, and are published with such a processor; the configs
    of CLAP do not say how long a clip is. `timm` and `open_clip` state preprocessing in their configs; Microsoft's CLAP has
    one, stated by no file. None where the folder states none, or Weft has no transform for the encoder.

    Raises: CheckpointError for preprocessing that Weft does not have, or that does not fit the encoder.
    """
    if isinstance(encoder, Cnn14.Config):
        heard = replace(ClapAudioTransform.sizes()["clap-microsoft"], num_mels=encoder.num_mels)
        return heard, replace(encoder, num_frames=heard.unit_shape[1])
    saved = preprocessing(folder)
    if not saved:
        return (read_test_transform(folder, encoder.unit_shape[-1]) if encoder.modality == "image" else None), encoder
    if isinstance(encoder, Whisper.Config):
        return _read_log_mel(saved, encoder, folder), encoder
    if isinstance(encoder, Hubert.Config):
        return _read_waveform(saved, encoder, folder), encoder
    if isinstance(encoder, ClapLaionWrapper.Config):
        heard = _read_decibels(saved, encoder, folder)
        return heard, replace(encoder, num_frames=heard.unit_shape[-1])
    if isinstance(encoder, Mllama.Config):
        return read_fitted_tiles(saved, encoder, folder), encoder
    if encoder.modality != "image":
        return None, encoder
    if isinstance(encoder, Dinov2.Config | Resnet.Config):
        encoder = replace(encoder, image_size=_Geometry.read(saved, encoder.image_size).size)
    return read_image_transform(saved, encoder.unit_shape[-1], folder), encoder


class _Geometry(NamedTuple):
    """What an image processor does to a picture's shape."""

    size: Any
    direct: bool
    shorter_side: Any

    @staticmethod
    def read(saved: Mapping[str, Any], default: int) -> _Geometry:
        size = saved.get("size", {"shortest_edge": default})
        if isinstance(size, dict) and "height" in size:
            return _Geometry(size["height"] if size["height"] == size.get("width") else size, True, None)
        side = size.get("shortest_edge") if isinstance(size, dict) else size
        if "crop_pct" in saved and isinstance(side, int):
            share = saved["crop_pct"] or 224 / 256
            return _Geometry(side, side >= _WARPED_FROM, int(side / share) if side < _WARPED_FROM else None)
        crop = saved.get("crop_size", default)
        return _Geometry(crop["height"] if isinstance(crop, dict) else crop, False, side)


def read_image_transform(saved: Mapping[str, Any], image_size: int, folder: Path) -> ImageTransform:
    """An image processor's settings; without any, CLIP's at the encoder's size.

    Raises: CheckpointError for settings that Weft cannot follow, or another size than the encoder's.
    """
    size, direct, shorter = _Geometry.read(saved, image_size)
    cropped = direct or "crop_pct" in saved or saved.get("do_center_crop", True)
    wanted = {
        "size": size == image_size if direct else isinstance(shorter, int) and shorter >= image_size,
        "crop_size": direct or size == image_size,
        "resample": saved.get("resample", BICUBIC) in _FILTER_NAMES,
        "do_resize": saved.get("do_resize", True),
        "do_normalize": saved.get("do_normalize", True),
        "do_rescale": saved.get("do_rescale", True),
        "rescale_factor": abs(saved.get("rescale_factor", 1 / 255) * 255 - 1) < 1e-6,
        "do_center_crop": cropped,
    }
    if unfit := [f"{name}={saved.get(name)!r}" for name, fits in wanted.items() if not fits]:
        raise CheckpointError(
            f"{folder}: the image processor has {', '.join(unfit)}; "
            f"Weft resizes with {' or '.join(FILTERS)} weights to the encoder's {image_size} pixels and scales by 1/255"
        )
    default = ImageTransform()
    return ImageTransform(
        size=image_size,
        resize="direct" if direct else "shortest",
        shorter_side=None if direct or shorter == image_size else shorter,
        filter=_FILTER_NAMES[saved.get("resample", BICUBIC)],
        pad_to_square=bool(saved.get("do_pad", False)),
        mean=tuple(saved.get("image_mean", default.mean)),
        std=tuple(saved.get("image_std", default.std)),
    )


def read_fitted_tiles(saved: Mapping[str, Any], encoder: Mllama.Config, folder: Path) -> PictureTiles:
    """The tiles of Llama 3.2's image processor; what it does not state is as published.

    Raises: CheckpointError for settings that Weft cannot follow, or more tiles than the encoder takes.
    """
    side = {"height": encoder.image_size, "width": encoder.image_size}
    published = {"size": side, "resample": int(FILTERS["bilinear"]), "image_mean": HALF, "image_std": HALF}
    saved = {**published, "max_image_tiles": encoder.max_tiles, **saved, "do_pad": False}  # it fills up the canvas
    if saved["max_image_tiles"] > encoder.max_tiles:
        raise CheckpointError(
            f"{folder}: the image processor cuts pictures into up to {saved['max_image_tiles']} tiles, the encoder takes "
            f"{encoder.max_tiles}"
        )
    view = read_image_transform(saved, encoder.image_size, folder)
    return PictureTiles(view=view, tiling=FittedCanvas(max_tiles=saved["max_image_tiles"]))


def _read_log_mel(saved: Mapping[str, Any], encoder: Whisper.Config, folder: Path) -> AudioTransform:
    seconds = 2 * encoder.num_frames * HOP_SAMPLES / SAMPLE_RATE_HZ
    _expect(
        saved,
        {
            "sampling_rate": SAMPLE_RATE_HZ,
            "n_fft": WINDOW_SAMPLES,
            "hop_length": HOP_SAMPLES,
            "feature_size": encoder.num_mels,
            "chunk_length": seconds,
            "do_normalize": False,
        },
        folder,
    )
    return AudioTransform(num_mels=encoder.num_mels, clip_seconds=seconds)


def _read_waveform(saved: Mapping[str, Any], encoder: Hubert.Config, folder: Path) -> WaveformTransform:
    _expect(saved, {"sampling_rate": SAMPLE_RATE_HZ, "feature_size": 1}, folder)
    seconds = encoder.clip_samples / SAMPLE_RATE_HZ
    return WaveformTransform(clip_seconds=seconds, standardise=saved.get("do_normalize", True))


def _read_decibels(saved: Mapping[str, Any], encoder: ClapLaionWrapper.Config, folder: Path) -> ClapAudioTransform:
    default = ClapAudioTransform()
    _expect(
        saved,
        {
            "sampling_rate": default.sample_rate_hz,
            "feature_size": encoder.num_mels,
            "fft_window_size": default.window_samples,
            "hop_length": default.hop_samples,
            "truncation": "fusion" if encoder.fused else "rand_trunc",
            "padding": "repeatpad",
        },
        folder,
    )
    return ClapAudioTransform(
        num_mels=encoder.num_mels,
        clip_seconds=saved.get("max_length_s", default.clip_seconds),
        lowest_hz=saved.get("frequency_min", 0.0),
        highest_hz=saved.get("frequency_max", default.highest_hz),
        fused=encoder.fused,
    )


def _expect(saved: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    if wrong := [f"{name}={saved[name]!r}, not {value!r}" for name, value in wanted.items() if saved.get(name, value) != value]:
        raise CheckpointError(f"{folder}: the feature extractor has {'; '.join(wrong)}; it does not fit Weft's encoder")
