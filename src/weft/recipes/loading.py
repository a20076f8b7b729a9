"""Open a model by path or hub name, whatever wrote it; save one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rules import rename
from weft.checkpoints.skeleton import skeleton
from weft.checkpoints.weight_files import TRAINED_ONLY, WeightFiles
from weft.core import config
from weft.core.errors import CheckpointError, ConfigError
from weft.core.interfaces import System
from weft.data.processor import Processor
from weft.data.tokenizers import Tokenizer
from weft.inference.embedder import Embedder
from weft.inference.model import Model
from weft.systems.dual_encoder import DualEncoder
from weft.systems.multimodal_lm import MultimodalSystem
from weft.training.model_folder import write_model_folder

AS_NAMED = KeyMap([rename("*", "*")])
"""The map of Weft's own files: every tensor under its parameter's name."""

_HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "spiece.model", "*.tiktoken", "*.jinja"]
_HUB_TORCH_FILES = ["pytorch_model*.bin", *(name for name in TRAINED_ONLY if not name.endswith(".safetensors"))]
Parts = Mapping[str, str | Path]


class FolderContents(NamedTuple):
    """What a folder describes, and the tensors that fill it, by their names there."""

    system: System.Config
    key_map: KeyMap
    processor: Processor
    tensors: Mapping[str, Tensor]
    where: str


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
) -> Embedder:
    """A dual encoder that embeds media and texts: see `load_system`. Raises: CheckpointError also for any other system."""
    loaded = load_system(path_or_hub_name, device, dtype, revision)
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

    Published are folders in `transformers` layout and in the original ones of LLaVA, Qwen-VL, CogVLM, Mono-InternVL and
    OpenFlamingo, and the files (`.pth`) of BLIP-2 and InstructBLIP as LAVIS writes them. Some leave out what they did not
    train: `parts` gives folders or hub names for `language_model`, `streams.image.encoder` and `tokenizer`.

    `dtype` None keeps the file's precision. Parameters are read one by one into their places on `device`. A hub name is pinned
    by `revision` (a commit, tag or branch); with HF_HUB_OFFLINE set only the local cache is asked.

    Raises: CheckpointError for what is missing, damaged, unsafe or does not fit; ConfigError for a part that must be given.
    """
    if (file := Path(path_or_hub_name)).is_file() and file.suffix == ".pth":
        from weft.recipes.lavis_file import read_lavis_file

        folder, found = file.parent, read_lavis_file(file, parts or {})
    else:
        folder = find_model_folder(path_or_hub_name, revision)
        found = _contents(folder, parts or {})
    system = _built(found.system, folder)
    found.key_map.load(system, found.tensors, found.where, dtype=dtype, device=device)
    return LoadedSystem(system.to(device).eval(), found.processor, folder)


def save_model(model: Model, folder: str | Path) -> None:
    """Write a Weft model folder, whole or not at all; an older model folder in its place is replaced.

    Raises: CheckpointError where something else stands there; RunError where the disk refuses.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / "processor.json").is_file())):
        raise CheckpointError(f"{folder} exists and is no Weft model folder; choose another")
    write_model_folder(folder, model.system, model.processor)


def find_model_folder(path_or_hub_name: str | Path, revision: str | None = None) -> Path:
    """The folder with `config.json`: itself, a run's last model, or the snapshot of a hub repository."""
    path = Path(path_or_hub_name)
    if path.is_dir():
        return _inside(path)
    name = _HUB_NAME.fullmatch(str(path_or_hub_name))
    if path.exists() or name is None or isinstance(path_or_hub_name, Path):
        kind = "is a file" if path.exists() else "does not exist"
        raise CheckpointError(
            f"{path_or_hub_name} {kind}; "
            "a model is a Weft model folder, a run folder, a folder in transformers layout or a hub name"
        )
    if revision is not None and name["revision"] is not None and revision != name["revision"]:
        raise CheckpointError(f"{path_or_hub_name} names one revision and revision={revision!r} another; give one")
    return _inside(_download(name["name"], revision or name["revision"]))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises: CheckpointError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def _contents(folder: Path, parts: Parts) -> FolderContents:
    if not (folder / "config.json").is_file():
        from weft.recipes.openflamingo_folder import read_openflamingo_folder

        return read_openflamingo_folder(folder, parts)
    saved = read_json(folder / "config.json")
    if "model_type" in saved or "architectures" in saved:
        from weft.recipes.transformers_folder import read_transformers_folder

        return read_transformers_folder(folder, saved, parts)
    if parts:
        raise ConfigError(f"{folder} is a Weft model folder and whole; leave out {', '.join(parts)}")
    return _read_weft_folder(folder)


def _inside(path: Path) -> Path:
    if any((path / name).is_file() for name in ("config.json", *TRAINED_ONLY)):
        return path
    if (path / "model" / "config.json").is_file():
        return path / "model"
    if (path / "recipe.json").is_file():
        stages = sorted(p.parent.name for p in path.glob("stages/*/config.json"))
        done = f"finished stages: {', '.join(f'stages/{s}' for s in stages)}" if stages else "no stage has finished"
        raise CheckpointError(f"run folder {path} has no model yet ({done}); resume the run or name a finished stage's folder")
    raise CheckpointError(f"{path} holds no model: no config.json, no model/config.json")


def _built(system_config: System.Config, folder: Path) -> System:
    """The system without memory. Raises: CheckpointError for sizes that fit no system."""
    try:
        with skeleton():
            return system_config.build()
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} describes no system that can be built ({type(error).__name__}: {error})"
        ) from error


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


def _download(name: str, revision: str | None) -> Path:
    """A snapshot of a hub repository, from the hub or from the local cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        commit, patterns = _listed(name, revision)
        return Path(snapshot_download(name, revision=commit or revision, allow_patterns=patterns))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        at = f" at revision {revision}" if revision else ""
        raise CheckpointError(
            f"{name}{at} is neither a folder nor in the local hub cache, and the hub was not asked or did not answer; "
            "download it with a connection, or give a folder"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise CheckpointError(f"{name} is no folder, and the hub refused it ({type(error).__name__}: {reason})") from error


def _listed(name: str, revision: str | None) -> tuple[str | None, list[str]]:
    """The commit of a revision, so that all files are of one, and which to fetch: torch files only without safetensors."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if constants.HF_HUB_OFFLINE:
        return None, [*_HUB_FILES, *_HUB_TORCH_FILES]
    try:
        listed = HfApi().model_info(name, revision=revision)
    except (HfHubHTTPError, HFValidationError):
        raise
    except Exception:  # no connection, in the words of whichever HTTP library; the cache may still hold it
        return None, [*_HUB_FILES, *_HUB_TORCH_FILES]
    safe = any(file.rfilename.endswith(".safetensors") for file in listed.siblings or [])
    return listed.sha, _HUB_FILES if safe else [*_HUB_FILES, *_HUB_TORCH_FILES]
