"""Where a model lies, by path or hub name, and what a reader finds in its folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from weft.checkpoints.clap_microsoft_audio import read_shapes
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.open_clip_config import OPEN_CLIP_CONFIG, from_open_clip
from weft.checkpoints.weight_files import CLAP_MICROSOFT_WEIGHTS, OPEN_CLIP_WEIGHTS, TRAINED_ONLY, WeightFiles, read_json
from weft.core.errors import CheckpointError
from weft.core.interfaces import System
from weft.data.processor import Processor

_HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "spiece.model", "*.tiktoken", "*.jinja"]
_HUB_TORCH_FILES = [
    "pytorch_model*.bin",
    *(name for name in (*OPEN_CLIP_WEIGHTS, CLAP_MICROSOFT_WEIGHTS, *TRAINED_ONLY) if not name.endswith(".safetensors")),
]
_DESCRIBED_BY = ("config.json", OPEN_CLIP_CONFIG, CLAP_MICROSOFT_WEIGHTS)
"""The files that say what a folder holds; Microsoft's CLAP comes as its weights alone."""

Parts = Mapping[str, str | Path]
"""Where the parts lie that a folder leaves out, by what they are."""


class FolderContents(NamedTuple):
    """What a folder describes, and the tensors that fill it, by their names there."""

    system: System.Config
    key_map: KeyMap
    processor: Processor
    tensors: Mapping[str, Tensor]
    where: str


class Description(NamedTuple):
    """What a folder says of its model, the file that says so, and where the weights lie that go with it."""

    config: dict[str, Any]
    source: Path
    weights: Path


def describe(folder: Path, whole: bool = False) -> Description | None:
    """The config of a folder, in the form of a `config.json`; None where no file says what it holds.

    A folder of `timm` may hold an image tower in that library's layout beside the `whole` model that it is part of, in the
    layout of `open_clip`.

    Raises: CheckpointError for a file that says something else, and for one that cannot be read.
    """
    plain, joint, alone = (folder / name for name in _DESCRIBED_BY)
    if plain.is_file():
        saved = read_json(plain)
        if not (whole and joint.is_file() and "architecture" in saved):
            return Description(saved, plain, folder)
    if joint.is_file():
        weights = next((folder / name for name in OPEN_CLIP_WEIGHTS if (folder / name).is_file()), folder)
        return Description(from_open_clip(read_json(joint), str(joint)), joint, weights)
    if alone.is_file():
        files = WeightFiles(alone)
        return Description(read_shapes({name: files.shape(name) for name in files}, str(alone)), alone, alone)
    return None


def find_model_folder(path_or_hub_name: str | Path, revision: str | None = None) -> Path:
    """The folder that says what it holds: itself, a run's last model, or the snapshot of a hub repository."""
    path = Path(path_or_hub_name)
    if path.is_dir():
        return _inside(path)
    name = _HUB_NAME.fullmatch(str(path_or_hub_name))
    if path.exists() or name is None or isinstance(path_or_hub_name, Path):
        kind = "is a file" if path.exists() else "does not exist"
        raise CheckpointError(
            f"{path_or_hub_name} {kind}; a model is a Weft model folder, a run folder, a published folder or a hub name"
        )
    if revision is not None and name["revision"] is not None and revision != name["revision"]:
        raise CheckpointError(f"{path_or_hub_name} names one revision and revision={revision!r} another; give one")
    return _inside(_download(name["name"], revision or name["revision"]))


def _inside(path: Path) -> Path:
    if any((path / name).is_file() for name in (*_DESCRIBED_BY, *TRAINED_ONLY)):
        return path
    if (path / "model" / "config.json").is_file():
        return path / "model"
    if (path / "recipe.json").is_file():
        stages = sorted(p.parent.name for p in path.glob("stages/*/config.json"))
        done = f"finished stages: {', '.join(f'stages/{s}' for s in stages)}" if stages else "no stage has finished"
        raise CheckpointError(f"run folder {path} has no model yet ({done}); resume the run or name a finished stage's folder")
    raise CheckpointError(f"{path} holds no model: no {', no '.join(_DESCRIBED_BY)}, no model/config.json")


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
