"""What the `transformers` library calls an activation."""

from __future__ import annotations

from weft.core.errors import CheckpointError

TRANSFORMERS_NAMES = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "squared_relu": "relu2",
}


def to_transformers(name: str) -> str:
    """Weft's name of an activation in `transformers`' spelling."""
    if name not in TRANSFORMERS_NAMES:
        raise CheckpointError(
            f"activation {name!r} has no name in transformers; known: {', '.join(sorted(TRANSFORMERS_NAMES))}"
        )
    return TRANSFORMERS_NAMES[name]


def from_transformers(name: str) -> str:
    """The name of an activation in a `transformers` config in Weft's spelling.

    Raises: CheckpointError for an activation that Weft does not have.
    """
    for ours, theirs in TRANSFORMERS_NAMES.items():
        if name == theirs:
            return ours
    known = ", ".join(sorted(TRANSFORMERS_NAMES.values()))
    raise CheckpointError(f"the config's activation {name!r} is not one that Weft has ({known})")
