"""From a command's arguments to a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

from weft.core.errors import ConfigError

if TYPE_CHECKING:
    from weft.training.stage import Recipe

C = TypeVar("C")


def chosen_recipe(name: str, size: str | None, tiny: bool, overrides: Iterable[str] | None) -> Recipe:
    """The recipe of a name and size, with every `PATH=VALUE` applied.

    Raises: ConfigError for an unknown name, size or field, with the nearest ones offered.
    """
    from weft.recipes.catalogue import recipe, tiny_recipe

    if tiny and size is not None:
        raise ConfigError("--tiny is a size of its own; leave --size out")
    return with_overrides(tiny_recipe(name) if tiny else recipe(name, size), overrides)


def with_overrides(chosen: C, overrides: Iterable[str] | None) -> C:
    """A config with every `PATH=VALUE` applied, all at once."""
    from weft.core.config import override_all

    return override_all(chosen, parsed_settings(overrides))  # type: ignore[no-any-return]


def parsed_settings(overrides: Iterable[str] | None) -> list[tuple[str, str]]:
    """Path and value of every `PATH=VALUE`. Raises: ConfigError for a text that is none."""
    settings = []
    for text in overrides or ():
        path, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set takes PATH=VALUE, as in stages.align.steps=200; got {text!r}")
        settings.append((path.strip(), value.strip()))
    return settings
