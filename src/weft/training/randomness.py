"""Seeds that depend on nothing but what they are for, and the state of every generator that a step may draw from."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import torch


def derive_seed(*purpose: int | str) -> int:
    """A seed below 2**63 from a run's seed and what it is for: the same on every machine, unrelated between purposes."""
    digest = hashlib.blake2b(repr(purpose).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_everything(*purpose: int | str) -> None:
    """Seed PyTorch on every device, `random` and NumPy."""
    import numpy

    seed = derive_seed(*purpose)
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)


def random_state() -> dict[str, Any]:
    """The state of those generators as tensors and plain values."""
    import numpy

    version, internal, gauss = random.getstate()
    legacy: Any = numpy.random.get_state(legacy=True)
    kind, keys, position, has_gauss, cached = legacy
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, list(internal), gauss],
        "numpy": [str(kind), torch.from_numpy(keys.astype("int64")), int(position), int(has_gauss), float(cached)],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put every generator back to where `random_state` found it."""
    import numpy

    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    numpy.random.set_state((kind, keys.numpy().astype("uint32"), position, has_gauss, cached))
