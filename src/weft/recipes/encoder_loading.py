"""Open one encoder from a published folder or hub repository: alone, or out of the file of a whole model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from weft.checkpoints.checkpoint_format import CheckpointFormat, format_of
from weft.checkpoints.skeleton import skeleton
from weft.checkpoints.weight_files import WeightFiles
from weft.core.errors import CheckpointError, ConfigError
from weft.core.interfaces import ModalityEncoder
from weft.data.media_transform import MediaTransform
from weft.layers.attention import join_projections
from weft.recipes.model_folders import describe, find_model_folder
from weft.recipes.transformers_preprocessing import read_media_transform

_TOWERS = ("model.vision_tower.vision_tower.", "model.vision_tower.", "vision_tower.", "model.vision_model.", "vision_model.")
"""Where the files of whole models keep their image tower: in LLaVA's own code, and in the spellings of versions 5 and 4."""

_ALONE = {"eva_clip": "eva_clip_vision", "clap_microsoft": "clap_microsoft_audio"}
"""Whole models whose towers share what the config says of both, and what the tower of media is called alone."""

_OF_THE_WHOLE = "belongs to the rest of the whole model, the encoder alone is loaded"


class LoadedEncoder(NamedTuple):
    """An encoder with the transform of its media, the folder that they came from, and what its file holds besides.

    `transform` is None where the folder states no preprocessing. `dropped` gives the reason for every key that was not used.
    """

    encoder: ModalityEncoder
    transform: MediaTransform | None
    folder: Path
    dropped: Mapping[str, str]


def load_encoder(
    path_or_hub_name: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> LoadedEncoder:
    """Open an encoder from a published folder or a name on the hub (`owner/name@revision`), weights included.

    The folder may hold the encoder alone or a whole model that has it (CLIP, CLAP, LLaVA, BLIP-2, Whisper with its decoder), in
    `transformers` layout or in that of `timm` (NFNet, EVA-CLIP), `open_clip` (EVA-CLIP) or Microsoft's CLAP. Of a LLaVA the
    encoder gives the features that LLaVA reads. `dtype` None keeps the file's precision. A hub name is pinned by `revision` (a
    commit, tag or branch); with HF_HUB_OFFLINE set only the local cache is asked. A file other than safetensors is read only
    where it holds nothing but tensors.

    Raises: CheckpointError for what is missing, damaged, unsafe or does not fit.
    """
    folder = find_model_folder(path_or_hub_name, revision)
    published = PublishedEncoder.in_folder(folder)
    transform, config = read_media_transform(folder, published.config)
    try:
        with skeleton():
            encoder = config.build()
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"{published.source} describes no encoder ({type(error).__name__}: {error})") from error
    dropped = published.fill(encoder, device=device, dtype=dtype)
    join_projections(encoder)
    return LoadedEncoder(encoder.to(device).eval(), transform, folder, dropped)


class PublishedEncoder(NamedTuple):
    """The encoder that a published folder describes, the file that does, and where its weights lie, which are not read yet."""

    folder: Path
    layout: CheckpointFormat
    config: ModalityEncoder.Config
    source: Path
    weights: Path

    @staticmethod
    def in_folder(folder: Path) -> PublishedEncoder:
        """Raises: CheckpointError where the folder describes no encoder that Weft has."""
        described = describe(folder)
        if described is None:
            raise CheckpointError(f"{folder} holds no config.json and no other file that describes an encoder")
        saved, where, weights = described
        if "model_type" not in saved and "architecture" not in saved:
            raise CheckpointError(f"{where} names no model_type; load_encoder reads published folders")
        tower = _tower(saved)
        layout = format_of(tower, str(where))
        try:
            config = layout.read_config(tower)
            if tower is not saved:
                config = _features_read_by(saved, config)
        except (CheckpointError, ConfigError) as error:
            raise CheckpointError(f"{folder}: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise CheckpointError(f"{where} lacks a field or misstates it ({type(error).__name__}: {error})") from error
        if not isinstance(config, ModalityEncoder.Config):
            raise CheckpointError(f"{folder} holds a {layout.name}, which has no encoder of media that stands alone")
        return PublishedEncoder(folder, layout, config, where, weights)

    def fill(
        self, encoder: ModalityEncoder, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> dict[str, str]:
        """Read the weights into an encoder of this kind; returns the keys that were not used, with their reasons.

        Raises: CheckpointError naming every missing, unknown and misshapen key.
        """
        files, tower, prefix = self.tensors()
        dropped = self.layout.key_map(encoder.config).load(encoder, tower, str(files.path), dtype=dtype, device=device)
        others = {key: _OF_THE_WHOLE for key in files if not key.startswith(prefix)}
        return {prefix + key: reason for key, reason in dropped.items()} | others

    def tensors(self) -> tuple[WeightFiles, Mapping[str, Tensor], str]:
        """The folder's weight files, the encoder's tensors of them, and the prefix that those have there."""
        files = WeightFiles(self.weights)
        prefix = next((p for p in _TOWERS if any(key.startswith(p) for key in files)), "")
        return files, _Under(files, prefix), prefix


def tower_config(folder: Path) -> Mapping[str, Any]:
    """What a folder says of its tower of media, with its `model_type`; empty where it says nothing."""
    described = describe(folder)
    return {} if described is None else _tower(described.config)


def _tower(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the media tower inside a whole model's; the config itself where there is none inside."""
    kind = str(saved.get("model_type", "")).replace("-", "_")
    if kind in _ALONE:
        return {**saved, "model_type": _ALONE[kind]}
    for part in ("vision", "audio"):
        if isinstance(inside := saved.get(f"{part}_config"), dict):
            return {"model_type": f"{kind}_{part}_model", **inside}
    return saved


def _features_read_by(saved: Mapping[str, Any], config: Any) -> Any:
    """The encoder with the features that a whole model takes from it."""
    layer = saved.get("vision_feature_layer")
    if layer is None or not hasattr(config, "feature_layer"):
        return config
    if not isinstance(layer, int):
        raise CheckpointError(f"vision_feature_layer={layer!r} joins several layers, a Weft encoder gives one")
    config = replace(config, feature_layer=layer)
    if hasattr(config, "keep_class_token"):
        config = replace(config, keep_class_token=saved.get("vision_feature_select_strategy", "default") == "full")
    elif saved.get("vision_feature_select_strategy", "default") == "default":
        raise CheckpointError(f"the model leaves out the first feature of a {config.part_name}, which has no class token")
    return config


class _Under(Mapping[str, Tensor]):
    """The tensors of weight files under a prefix, named without it and read when they are asked for."""

    def __init__(self, files: WeightFiles, prefix: str) -> None:
        self._files, self._prefix = files, prefix

    def __getitem__(self, key: str) -> Tensor:
        return self._files[self._prefix + key]

    def __iter__(self) -> Iterator[str]:
        return (key.removeprefix(self._prefix) for key in self._files if key.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def shape(self, key: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return self._files.shape(self._prefix + key)
