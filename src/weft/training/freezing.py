"""What trains and what is frozen, by name patterns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from weft.core.errors import ConfigError


def select_names(names: Iterable[str], patterns: Sequence[str], where: str) -> list[str]:
    """The names that match a pattern and no `!` pattern, in their own order.

    Raises: ConfigError for a pattern, included or excluded, that matches nothing.
    """
    names = list(names)
    included = {p: {n for n in names if fnmatchcase(n, p)} for p in patterns if not p.startswith("!")}
    excluded = {p: {n for n in names if fnmatchcase(n, p[1:])} for p in patterns if p.startswith("!")}
    if idle := [p for p, found in {**included, **excluded}.items() if not found]:
        tops = sorted({".".join(n.split(".")[:2]) for n in names})
        shown = ", ".join(tops[:8]) + (" ..." if len(tops) > 8 else "")
        raise ConfigError(f"{where}: pattern {', '.join(map(repr, idle))} matches no parameter; names begin with {shown}")
    chosen = set().union(*included.values()) - set().union(*excluded.values())
    return [n for n in names if n in chosen]


def freeze(system: nn.Module, train: Sequence[str], where: str = "stage") -> dict[str, nn.Parameter]:
    """Let the parameters that match `train` learn and hold every other; returns the trained ones by name.

    Raises: ConfigError for a pattern that matches nothing, or when nothing is left to train.
    """
    parameters = dict(system.named_parameters())
    chosen = set(select_names(parameters, train, f"{where}: train"))
    if not chosen:
        raise ConfigError(f"{where}: train={tuple(train)} excludes every parameter that it includes")
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in chosen)
        parameter.grad = None
    return {n: p for n, p in parameters.items() if n in chosen}


def set_training_mode(system: nn.Module) -> None:
    """Training mode for the modules that hold a trained parameter; frozen parts stay in evaluation mode.

    A module without parameters (dropout) follows the module that it stands in.
    """
    _set_mode(system, True)


def _set_mode(module: nn.Module, mode: bool) -> None:
    parameters = list(module.parameters())
    if parameters:
        mode = any(p.requires_grad for p in parameters)
    module.training = mode
    for child in module.children():
        _set_mode(child, mode)
