"""From one layout to another: what `weft convert` does."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import torch

from weft.checkpoints.weight_files import SHARD_BYTES
from weft.core.errors import CheckpointError, unknown_name
from weft.recipes.loading import load_system
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
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write the model at `source` (anything that `load_system` opens) to the folder `target` in another layout.

    `dtype` None keeps the precision. The folder appears whole or not at all.

    Raises: CheckpointError for a target that holds something, and for a system that the layout cannot hold.
    """
    target = Path(target)
    if to not in get_args(Layout):
        raise unknown_name("layout", to, get_args(Layout))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} exists and is not empty; choose another folder")
    loaded = load_system(source, dtype=dtype, revision=revision)
    if to == "weft":
        write_model_folder(target, loaded.system, loaded.processor)
        return target
    with atomic_folder(target) as partial:
        write_transformers_folder(partial, loaded.system, loaded.processor, shard_bytes=shard_bytes)
    return target
