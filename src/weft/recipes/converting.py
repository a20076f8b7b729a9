"""From one layout to another: what `weft convert` does."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

import torch

from weft.checkpoints.skeleton import skeleton
from weft.checkpoints.weight_files import SHARD_BYTES
from weft.core.config import override_all
from weft.core.errors import CheckpointError, ConfigError, unknown_name
from weft.core.interfaces import System
from weft.recipes.loading import load_system
from weft.recipes.model_folders import Parts
from weft.recipes.transformers_writing import write_transformers_folder
from weft.training.atomic import atomic_folder
from weft.training.model_folder import write_model_folder

Layout = Literal["transformers", "weft"]


def convert(
    source: str | Path,
    target: str | Path,
    to: Layout = "transformers",
    *,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    parts: Parts | None = None,
    shard_bytes: int = SHARD_BYTES,
    settings: Iterable[tuple[str, str]] = (),
) -> Path:
    """Write the model at `source` (anything that `load_system` opens with `parts`) to the folder `target` in another layout.

    `dtype` None keeps the precision. `settings` are fields of the system's config that become other values, which no weight may
    depend on: where a layout has one value for several, one says so. The folder appears whole or not at all.

    Raises: CheckpointError for a target that holds something, and for a system that the layout cannot hold; ConfigError for
    settings that the system does not have or that its weights do not fit.
    """
    target = Path(target)
    if to not in get_args(Layout):
        raise unknown_name("layout", to, get_args(Layout))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} exists and is not empty; choose another folder")
    loaded = load_system(source, dtype=dtype, revision=revision, parts=parts)
    system = _changed(loaded.system, list(settings))
    if to == "weft":
        write_model_folder(target, system, loaded.processor)
        return target
    with atomic_folder(target) as partial:
        write_transformers_folder(partial, system, loaded.processor, shard_bytes=shard_bytes)
    return target


def _changed(system: System, settings: list[tuple[str, str]]) -> System:
    """The same weights under a config with other values."""
    if not settings:
        return system
    with skeleton():
        changed: System = override_all(system.config, settings).build().eval()
    try:
        changed.load_state_dict(system.state_dict(keep_vars=True), assign=True)  # the same tensors, tied ones too
    except RuntimeError as error:
        paths, reason = ", ".join(path for path, _ in settings), " ".join(str(error).split())
        raise ConfigError(f"{paths}: the model's weights are of other sizes: {reason}") from None
    return changed
