"""From a command's arguments to an encoder, a projector or a language model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from weft.core import catalogue
from weft.core.config import Config
from weft.core.errors import ConfigError, unknown_name
from weft.serving.chosen_recipe import with_overrides
from weft.serving.part_costs import DEFAULT, sizes_of

ROOMS = {"encoders": "encoder", "projectors": "projector", "language_models": "language model"}


@dataclass(frozen=True)
class ChosenPart:
    """A part by its name: its class, the room that it stands in, the names of all its sizes, and the configs asked for."""

    name: str
    room: str
    cls: type
    sizes: tuple[str, ...]
    configs: dict[str, Config]

    def only(self) -> Config:
        """The one config that was asked for. Raises: ConfigError where several were."""
        if len(self.configs) > 1:
            raise ConfigError(f"{self.name} has several sizes; name one with --size: {', '.join(self.sizes)}")
        return next(iter(self.configs.values()))


def chosen_part(name: str, size: str | None, tiny: bool, overrides: Iterable[str] | None) -> ChosenPart | None:
    """The part of a name, `siglip_vision` or `encoders/siglip_vision`, at one size or at all; None for the name of a recipe.

    Raises: ConfigError for an unknown name, size or field, and for `tiny`, which is a size of recipes.
    """
    from weft.recipes.catalogue import public_name, recipe_names

    if public_name(name.lower()) in recipe_names():
        return None
    found = {part: (room, cls) for room in ROOMS for part, cls in catalogue.parts(room).items()}
    rooms = {f"{room}/{part}": (part, room, cls) for part, (room, cls) in found.items()}
    spelled = name.lower().replace("-", "_")
    if spelled in found:
        spelled = f"{found[spelled][0]}/{spelled}"
    if spelled not in rooms:
        raise unknown_name("recipe or part", name, [*recipe_names(), *(rooms if "/" in name else found)])
    part, room, cls = rooms[spelled]
    if tiny:
        raise ConfigError(f"{part} is a part, and --tiny is a size of recipes; leave it out")
    sizes = sizes_of(cls)
    if size is not None and size not in sizes:
        if DEFAULT in sizes:
            raise ConfigError(f"{part} has a single size; leave --size out")
        raise ConfigError(f"unknown size of {part} {size!r}; known: {', '.join(sizes)}")
    chosen = sizes if size is None else {size: sizes[size]}
    overrides = list(overrides or ())
    return ChosenPart(part, room, cls, tuple(sizes), {key: with_overrides(value, overrides) for key, value in chosen.items()})
