"""What the C library does with memory that a step has freed."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

import torch

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # mallopt(3)
_NEVER = 2**31 - 1


def keep_freed_memory(device: torch.device) -> bool:
    """Keep what a step on a CPU frees for the next instead of giving it back to the system; returns whether that was possible.

    Every step takes and frees the same activations. glibc maps large blocks and gives them back one by one, so that each step
    meets thousands of pages that the system must first find and clear: 8,000 in a step of the demo's image tower, a tenth
    of its time. Elsewhere than on glibc nothing is done.
    """
    if device.type != "cpu" or sys.platform != "linux":
        return False
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
    return False
