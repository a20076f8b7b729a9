"""The recipes that exist, found by looking into this room.

A module `recipes/<name>.py` is a recipe when it has a function of its own name that returns a `Recipe`. `SIZES` lists what that
function takes as its size, `tiny()` gives the same stages at CPU size, `tokenizer()` is there where a recipe trains its own. A
public name has dashes for underscores, dots between digits: `llava_1_5` is `llava-1.5`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from functools import cache
from types import ModuleType
from typing import cast

from weft import recipes as room
from weft.core.errors import ConfigError, unknown_name
from weft.data.tokenizers import Tokenizer
from weft.training.stage import Recipe


def recipe(name: str, size: str | None = None) -> Recipe:
    """A recipe at a published size, by default its own first choice.

    Raises: ConfigError for an unknown name or size, with the nearest ones offered.
    """
    module = _module(name)
    build = getattr(module, _stem(module))
    if size is None:
        return cast(Recipe, build())
    if size not in sizes_of(name):
        if not sizes_of(name):
            raise ConfigError(f"recipe {name!r} has a single size; leave the size out")
        raise unknown_name(f"size of {name}", size, sizes_of(name))
    return cast(Recipe, build(size))


def tiny_recipe(name: str) -> Recipe:
    """A recipe at CPU size on the desk. Raises: ConfigError for an unknown name, or a recipe that is small already."""
    module = _module(name)
    if not hasattr(module, "tiny"):
        raise ConfigError(f"recipe {name!r} is made for the CPU already and has no tiny form; leave --tiny out")
    return cast(Recipe, module.tiny())


def tiny_names() -> tuple[str, ...]:
    """The recipes that have a tiny form."""
    return tuple(name for name in recipe_names() if hasattr(_module(name), "tiny"))


def own_tokenizer(name: str) -> Tokenizer | None:
    """The tokenizer that a recipe trains for itself; None where it takes its language model's."""
    build = getattr(_module(name), "tokenizer", None)
    return None if build is None else cast(Tokenizer, build())


def recipe_names() -> tuple[str, ...]:
    """The names of all recipes, sorted."""
    return tuple(sorted(_modules()))


def sizes_of(name: str) -> tuple[str, ...]:
    """The published sizes of a recipe, none where there is but one. Raises: ConfigError for an unknown name."""
    return tuple(getattr(_module(name), "SIZES", ()))


def public_name(stem: str) -> str:
    """How a module's name is written for people: llava_1_5 -> llava-1.5."""
    return re.sub(r"(?<=\d)_(?=\d)", ".", stem).replace("_", "-")


@cache
def _modules() -> dict[str, ModuleType]:
    found = {}
    for info in pkgutil.iter_modules(room.__path__):
        module = importlib.import_module(f"{room.__name__}.{info.name}")
        build = getattr(module, info.name, None)
        if inspect.isfunction(build) and inspect.signature(build).return_annotation == "Recipe":
            found[public_name(info.name)] = module
    return found


def _module(name: str) -> ModuleType:
    spelled = public_name(name.lower())
    if spelled not in _modules():
        raise unknown_name("recipe", name, _modules())
    return _modules()[spelled]


def _stem(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]
