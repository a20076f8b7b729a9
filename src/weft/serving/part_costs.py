"""What a part costs, counted without memory; a projector between example widths."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any, NamedTuple

from torch import nn

from weft.core.errors import MissingLibrary
from weft.core.interfaces import InputProjector
from weft.core.layout import MediaLayout
from weft.serving.quantities import count
from weft.systems.accounting import num_parameters, num_table_values, without_values

EXAMPLE_GRID = MediaLayout(24, 24)  # LLaVA-1.5's
EXAMPLE_WIDTHS = (1024, 4096)
DEFAULT = "default"


class Costs(NamedTuple):
    """Parameters and values of fixed tables, or the library that is `missing` to count them."""

    parameters: int
    tables: int = 0
    missing: str = ""

    @property
    def told(self) -> str:
        """The parameters for people."""
        return f"needs {self.missing}" if self.missing else count(self.parameters)


def sizes_of(cls: Any) -> dict[str, Any]:
    """The configs of a part by published size; its default config where nothing was published under a name."""
    sizes: dict[str, Any] = dict(getattr(cls.Config, "sizes", dict)())
    return sizes or {DEFAULT: cls.Config()}


def fitting(config: Any) -> Any:
    """The config with room for the example grid."""
    return replace(config, capacity=EXAMPLE_GRID.positions) if hasattr(config, "capacity") else config


def built(config: Any) -> nn.Module:
    """The part without memory and without values."""
    with without_values():
        part: nn.Module = config.build(*(EXAMPLE_WIDTHS if isinstance(config, InputProjector.Config) else ()))
    return part


def costs_of(config: Any) -> Costs:
    """What a part costs, where what it is built from is installed: a wrapper's library may be missing.

    A wrapper counts itself, because loading its library takes longer than all the rest.
    """
    if hasattr(config, "library") and find_spec(config.library) is None:
        return Costs(0, missing=config.library)
    if hasattr(config, "num_parameters"):
        return Costs(config.num_parameters)
    try:
        part = built(config)
    except MissingLibrary as error:
        return Costs(0, missing=error.library)
    return Costs(num_parameters(part), num_table_values(part))
