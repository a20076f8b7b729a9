"""The precision in which a cache keeps what it is given."""

from __future__ import annotations

import torch
from torch import Tensor


def stored_precision(new: Tensor) -> torch.dtype:
    """The precision in which a tensor is kept: the values are the same, and reading them back is what decoding costs.

    Measured: on a CPU, one query against 600 keys of 8 heads takes 430 us in bfloat16 and 50 us in float32.
    """
    reduced = new.dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if reduced and new.device.type == "cpu" else new.dtype
