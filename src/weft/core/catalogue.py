"""What there is of each kind: found by looking into the rooms, never kept in a list."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from functools import cache

from torch import nn

from weft.core.errors import unknown_name
from weft.core.interfaces import (
    Fusion,
    InputProjector,
    LanguageModel,
    ModalityEncoder,
    Objective,
    System,
    TextEncoder,
)

INTERFACES: dict[str, tuple[type[nn.Module], ...]] = {
    "encoders": (ModalityEncoder, TextEncoder),
    "projectors": (InputProjector,),
    "language_models": (LanguageModel,),
    "fusion": (Fusion,),
    "systems": (System,),
    "objectives": (Objective,),
}


def snake_case(name: str) -> str:
    """The catalogue's spelling of a class name: PixelShuffle -> pixel_shuffle, MultimodalLM -> multimodal_lm."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z](?!\d))", "_", name).lower()


@cache
def _found(room: str) -> tuple[tuple[str, type[nn.Module]], ...]:
    if room not in INTERFACES:
        raise unknown_name("room", room, INTERFACES)
    package = importlib.import_module(f"weft.{room}")
    found = {}
    for module_info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(module_info.name)
        for cls in vars(module).values():
            defined_here = inspect.isclass(cls) and cls.__module__ == module.__name__ and not cls.__name__.startswith("_")
            if defined_here and issubclass(cls, INTERFACES[room]) and not inspect.isabstract(cls):
                found[snake_case(cls.__name__)] = cls
    return tuple(sorted(found.items()))


def parts(room: str) -> dict[str, type[nn.Module]]:
    """The parts of a room by name: every concrete public class that a module of `weft.<room>` defines, sorted.

    A new part joins by existing. Raises: ConfigError for a room without an interface.
    """
    return dict(_found(room))
