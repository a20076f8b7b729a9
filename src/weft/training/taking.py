"""A stage takes parameters from earlier stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from weft.checkpoints.position_table import resized
from weft.core.errors import ConfigError
from weft.training.model_folder import tied_names
from weft.training.stage import Stage

_SHOWN = 6


def take(stage: Stage, system: nn.Module, state_of: Callable[[str], Mapping[str, Tensor]]) -> list[str]:
    """Fill a fresh system from earlier stages; returns the source names that a pattern named and this system has no place for.

    `state_of` gives an earlier stage's tensors by name. The part of a source name up to the first wildcard of its pattern is
    replaced by the target prefix. Nothing is written unless everything fits.

    Raises: ConfigError that lists each pattern without a match, each key filled twice, of another shape, or neither filled
    nor new.
    """
    targets = system.state_dict()
    filled: dict[str, Tensor] = {}
    problems: list[str] = []
    unplaced: list[str] = []
    for earlier, patterns in stage.takes.items():
        source = state_of(earlier)
        for pattern, prefix in patterns.items():
            found = [name for name in source if fnmatchcase(name, pattern)]
            placed = {name: target for name in found if (target := prefix + name[_literal(pattern) :]) in targets}
            if not placed:
                problems.append(f"{earlier}: {pattern!r} -> {prefix!r} fills nothing ({len(found)} source names match)")
            unplaced += [f"{earlier}:{name}" for name in found if name not in placed]
            for name, target in placed.items():
                if target in filled:
                    problems.append(f"{target} is filled twice, last from {earlier}:{name}")
                elif source[name].shape != targets[target].shape and not _interpolated(stage, target):
                    problems.append(f"{target} is {_shape(targets[target])}, {earlier}:{name} is {_shape(source[name])}")
                else:
                    same = source[name].shape == targets[target].shape
                    filled[target] = source[name] if same else resized(source[name], math.isqrt(len(targets[target]) - 1))
    tied = tied_names(system)
    known = {tied.get(name, name) for name in filled}
    missing = [n for n in targets if tied.get(n, n) not in known and not any(fnmatchcase(n, p) for p in stage.new)]
    problems += [f"{name} is neither filled nor declared new" for name in missing]
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ConfigError(f"stage {stage.name!r} takes: {'; '.join(problems[:_SHOWN])}{more}")
    with torch.no_grad():
        for name, tensor in filled.items():
            if not targets[name].is_meta:
                targets[name].copy_(tensor)
    return unplaced


def _interpolated(stage: Stage, target: str) -> bool:
    return any(fnmatchcase(target, pattern) for pattern in stage.interpolates)


def _literal(pattern: str) -> int:
    """How much of a name is fixed by its pattern: up to the first wildcard."""
    return min((i for i, character in enumerate(pattern) if character in "*?["), default=len(pattern))


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
