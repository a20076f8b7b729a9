"""A model folder: config.json, model.safetensors, processor.json, tokenizer.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from weft.core import config
from weft.core.errors import CheckpointError
from weft.core.interfaces import System
from weft.data.processor import Processor
from weft.training.atomic import atomic_folder

WEIGHTS = "model.safetensors"


def write_model_folder(folder: Path, system: System, processor: Processor) -> None:
    """Write everything that is needed to use a model, or nothing.

    Raises: RunError where the disk refuses; a folder that stood there before stays.
    """
    with atomic_folder(Path(folder)) as partial:
        (partial / "config.json").write_text(config.dumps(system.config), encoding="utf-8")
        (partial / "processor.json").write_text(config.dumps(processor.config), encoding="utf-8")
        processor.tokenizer.save(partial)
        write_weights(partial / WEIGHTS, system)


def write_weights(path: Path, module: nn.Module) -> None:
    """Write a module's parameters and buffers; a tied tensor is stored once, under its first name."""
    from safetensors.torch import save_file

    tied = tied_names(module)
    state = {n: t.detach().cpu().contiguous() for n, t in module.state_dict().items() if tied.get(n, n) == n}
    save_file(state, path, metadata={"format": "pt"})


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file by name.

    Raises: CheckpointError for a file that is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}); it was cut short or is another format"
        ) from None


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Fill every parameter and buffer of a module.

    Raises: CheckpointError listing names that are missing, left over or of another shape; nothing is written then.
    """
    state, tied = module.state_dict(), tied_names(module)
    expected = {n for n in state if tied.get(n, n) == n}
    problems = [f"{n} is missing" for n in sorted(expected - set(tensors))]
    problems += [f"{n} has no place in this system" for n in sorted(set(tensors) - set(state))]
    for name in sorted(expected & set(tensors)):
        if state[name].shape != tensors[name].shape:
            problems.append(f"{name} is {tuple(tensors[name].shape)} in the file, {tuple(state[name].shape)} in the system")
    if problems:
        more = f"; and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise CheckpointError(f"{where} does not fit the system: {'; '.join(problems[:6])}{more}")
    with torch.no_grad():
        for name in expected:
            state[name].copy_(tensors[name])


def tied_names(module: nn.Module) -> dict[str, str]:
    """Every parameter and buffer name with the first name of the same tensor."""
    first: dict[int, str] = {}
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}
