"""What one upstream layout offers: its key table, and its config file in both directions."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from weft.checkpoints.key_map import KeyMap
from weft.core.errors import CheckpointError


@dataclass(frozen=True)
class CheckpointFormat:
    """One upstream layout; a module of this room that holds one joins by existing.

    `model_types` are the values of `model_type` in the upstream `config.json` (timm: `architecture`; where there is neither,
    the class that `architectures` names first); `tiny` gives configs
    for contract tests, each with a `build()`; `key_map`, `read_config` and `write_config` belong to the same Weft config.
    `fields` are those that tell this layout's config from another's of the same `model_type`.
    """

    name: str
    model_types: tuple[str, ...]
    key_map: Callable[[Any], KeyMap]
    read_config: Callable[[Mapping[str, Any]], Any]
    write_config: Callable[[Any], dict[str, Any]]
    tiny: Callable[[], tuple[Any, ...]]
    fields: tuple[str, ...] = ()


def checkpoint_formats() -> dict[str, CheckpointFormat]:
    """Every format that a module of this room defines, by name."""
    import weft.checkpoints as room

    found: dict[str, CheckpointFormat] = {}
    for module in pkgutil.iter_modules(room.__path__):
        members = vars(importlib.import_module(f"{room.__name__}.{module.name}")).values()
        found |= {value.name: value for value in members if isinstance(value, CheckpointFormat)}
    return found


def format_of(config: Mapping[str, Any], where: str) -> CheckpointFormat:
    """The format that reads an upstream config, by its `model_type`, in timm's files its `architecture`, else its class.

    Raises: CheckpointError for a type that no module of this room reads.
    """
    kind = config.get("model_type") or config.get("architecture") or (config.get("architectures") or [None])[0]
    formats = checkpoint_formats()
    able = [each for each in formats.values() if kind in each.model_types and all(name in config for name in each.fields)]
    if able:
        return max(able, key=lambda each: len(each.fields))
    known = sorted({name for candidate in formats.values() for name in candidate.model_types})
    raise CheckpointError(f"{where} has model_type {kind!r}; Weft reads {', '.join(known)}")
