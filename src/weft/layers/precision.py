"""The precision of the residual stream."""

from __future__ import annotations

import torch
from torch import Tensor


def working_precision(hidden: Tensor) -> Tensor:
    """The residual stream in autocast's precision where autocast is on, untouched elsewhere.

    Under autocast a float32 stream would be cast before every linear layer and its sums written in twice the bytes; published
    models carry a bfloat16 stream as well. Softmax, norms' statistics and losses stay in float32.
    """
    kind = hidden.device.type
    if kind != "meta" and hidden.dtype == torch.float32 and torch.is_autocast_enabled(kind):  # meta knows no autocast
        return hidden.to(torch.get_autocast_dtype(kind))
    return hidden
