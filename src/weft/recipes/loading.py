"""Open a model by path or hub name, whatever wrote it; save one."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rules import rename
from weft.checkpoints.skeleton import skeleton
from weft.checkpoints.weight_files import WeightFiles
from weft.core import config
from weft.core.errors import CheckpointError, ConfigError
from weft.core.interfaces import System
from weft.data.processor import Processor
from weft.data.tokenizers import Tokenizer
from weft.inference.embedder import Embedder
from weft.inference.model import Model
from weft.layers.attention import join_projections
from weft.recipes.model_folders import FolderContents, Parts, describe, find_model_folder
from weft.systems.dual_encoder import DualEncoder
from weft.systems.multimodal_lm import MultimodalSystem
from weft.training.model_folder import write_model_folder

AS_NAMED = KeyMap([rename("*", "*")])
"""The map of Weft's own files: every tensor under its parameter's name."""


class LoadedSystem(NamedTuple):
    """A system with its processor, and the folder that they came from."""

    system: System
    processor: Processor
    folder: Path


def load_model(
    path_or_hub_name: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    parts: Parts | None = None,
) -> Model:
    """A model that answers: see `load_system`. Raises: CheckpointError also for a system that has no language model."""
    loaded = load_system(path_or_hub_name, device, dtype, revision, parts)
    if not isinstance(loaded.system, MultimodalSystem):
        kind = type(loaded.system).__name__
        raise CheckpointError(f"{path_or_hub_name} holds a {kind}, which does not answer; load_system opens it")
    return Model(loaded.system, loaded.processor)


def load_embedder(
    path_or_hub_name: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    parts: Parts | None = None,
) -> Embedder:
    """A dual encoder that embeds media and texts: see `load_system`. Raises: CheckpointError also for any other system."""
    loaded = load_system(path_or_hub_name, device, dtype, revision, parts)
    if not isinstance(loaded.system, DualEncoder):
        kind = type(loaded.system).__name__
        raise CheckpointError(f"{path_or_hub_name} holds a {kind}, which has no two towers to compare; load_model opens it")
    return Embedder(loaded.system, loaded.processor)


def load_system(
    path_or_hub_name: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    parts: Parts | None = None,
) -> LoadedSystem:
    """Open a Weft model folder, a run folder, a published folder, or a name on the hub (`owner/name@revision`).

    Published are folders in `transformers` layout and in the original ones of LLaVA, Qwen-VL, CogVLM, Mono-InternVL,
    OpenFlamingo, EVA-CLIP (as `open_clip` writes it) and Microsoft's CLAP, and the files (`.pth`) of BLIP-2 and InstructBLIP as
    LAVIS writes them. Some leave out what they did not train: `parts` gives folders or hub names for `language_model`,
    `streams.image.encoder` and `tokenizer`.

    `dtype` None keeps the file's precision. Parameters are read one by one into their places on `device`. A hub name is pinned
    by `revision` (a commit, tag or branch); with HF_HUB_OFFLINE set only the local cache is asked.

    Raises: CheckpointError for what is missing, damaged, unsafe or does not fit; ConfigError for a part that must be given.
    """
    folder, found = read_contents(path_or_hub_name, parts or {}, revision)
    system = _built(found.system, folder)
    found.key_map.load(system, found.tensors, found.where, dtype=dtype, device=device)
    join_projections(system)
    return LoadedSystem(system.to(device).eval(), found.processor, folder)


def save_model(model: Model, folder: str | Path) -> None:
    """Write a Weft model folder, whole or not at all; an older model folder in its place is replaced.

    Raises: CheckpointError where something else stands there; RunError where the disk refuses.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / "processor.json").is_file())):
        raise CheckpointError(f"{folder} exists and is no Weft model folder; choose another")
    write_model_folder(folder, model.system, model.processor)


def read_contents(path_or_hub_name: str | Path, parts: Parts, revision: str | None = None) -> tuple[Path, FolderContents]:
    """The folder of whatever `load_system` opens, and what it describes; no weight is read yet.

    Raises: CheckpointError, ConfigError as `load_system`.
    """
    if (file := Path(path_or_hub_name)).is_file() and file.suffix == ".pth":
        from weft.recipes.lavis_file import read_lavis_file

        return file.parent, read_lavis_file(file, parts)
    folder = find_model_folder(path_or_hub_name, revision)
    return folder, _contents(folder, parts)


def _contents(folder: Path, parts: Parts) -> FolderContents:
    described = describe(folder, whole=True)
    if described is None:
        from weft.recipes.openflamingo_folder import read_openflamingo_folder

        return read_openflamingo_folder(folder, parts)
    if any(name in described.config for name in ("model_type", "architectures", "architecture")):
        from weft.recipes.transformers_folder import read_transformers_folder

        return read_transformers_folder(folder, described.config, parts, described.weights)
    if parts:
        raise ConfigError(f"{folder} is a Weft model folder and whole; leave out {', '.join(parts)}")
    return _read_weft_folder(folder)


def _built(system_config: System.Config, folder: Path) -> System:
    """The system without memory. Raises: CheckpointError for sizes that fit no system."""
    try:
        with skeleton():
            return system_config.build()
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"{folder} describes no system that can be built ({type(error).__name__}: {error})") from error


def _read_weft_folder(folder: Path) -> FolderContents:
    saved = folder / "config.json"
    system = config.loads(saved.read_text(encoding="utf-8"), str(saved))
    if not isinstance(system, System.Config):
        raise ConfigError(f"{saved} describes a {type(system).__qualname__}, not a system")
    listed = folder / "processor.json"
    if not listed.is_file():
        raise CheckpointError(f"{listed} does not exist; a Weft model folder holds its processor")
    processor = config.loads(listed.read_text(encoding="utf-8"), str(listed))
    if not isinstance(processor, Processor.Config):
        raise ConfigError(f"{listed} describes a {type(processor).__qualname__}, not a processor")
    files = WeightFiles(folder)
    return FolderContents(system, AS_NAMED, processor.build(Tokenizer.from_file(folder), system), files, str(files.path))
