"""The precision that a command names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weft.core.errors import unknown_name

if TYPE_CHECKING:
    import torch

NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def chosen_precision(name: str | None) -> torch.dtype | None:
    """The data type of a name; None stays None, which keeps a file's own."""
    if name is None:
        return None
    if name not in NAMES:
        raise unknown_name("precision", name, NAMES)
    import torch

    dtype: torch.dtype = getattr(torch, NAMES[name])
    return dtype
