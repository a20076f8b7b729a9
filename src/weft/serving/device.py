"""Where a model runs."""

from __future__ import annotations


def chosen_device(name: str) -> str:
    """The device of a name; "auto" is the accelerator that PyTorch finds, else the CPU."""
    if name != "auto":
        return name
    import torch

    if torch.accelerator.is_available():
        accelerator = torch.accelerator.current_accelerator()
        if accelerator is not None:
            return str(accelerator)
    return "cpu"
