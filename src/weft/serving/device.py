"""Where a model runs."""

from __future__ import annotations

from weft.core.errors import ConfigError


def chosen_device(name: str) -> str:
    """The device of a name; "auto" is the accelerator that PyTorch finds, else the CPU.

    Raises: ConfigError for a device that this machine does not have, with those that it has.
    """
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return "cpu" if accelerator is None else str(accelerator)
    known = ["cpu"]
    if accelerator is not None:
        known += [accelerator.type, *(f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count()))]
    if name not in known:
        raise ConfigError(f"no device {name!r} here for torch {torch.__version__}; there is {', '.join(known)}")
    return name
