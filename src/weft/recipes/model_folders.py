"""Where a model lies, by path or hub name, and what a reader finds in its folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.weight_files import TRAINED_ONLY
from weft.core.errors import CheckpointError
from weft.core.interfaces import System
from weft.data.processor import Processor

_HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "spiece.model", "*.tiktoken", "*.jinja"]
_HUB_TORCH_FILES = ["pytorch_model*.bin", *(name for name in TRAINED_ONLY if not name.endswith(".safetensors"))]

Parts = Mapping[str, str | Path]
"""Where the parts lie that a folder leaves out, by what they are."""


class FolderContents(NamedTuple):
    """What a folder describes, and the tensors that fill it, by their names there."""

    system: System.Config
    key_map: KeyMap
    processor: Processor
    tensors: Mapping[str, Tensor]
    where: str


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
