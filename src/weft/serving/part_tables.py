"""Tables of the parts that exist, with what each costs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from weft.core import catalogue
from weft.core.errors import MissingLibrary
from weft.core.interfaces import InputProjector, LanguageModel, ModalityEncoder, TextEncoder
from weft.core.layout import MediaLayout
from weft.serving.quantities import count
from weft.systems.accounting import num_parameters, num_table_values, omitted, without_values

EXAMPLE_GRID = MediaLayout(24, 24)  # LLaVA-1.5's
EXAMPLE_WIDTHS = (1024, 4096)
DEFAULT = "default"
PAPER_WIDTH = len("2310.03744")


def table(room: str) -> Table:
    """The table of a room."""
    return _TABLES.get(room, _plain)(room)


def purpose(cls: type) -> str:
    """The first sentence of a class's docstring."""
    text = inspect.getdoc(cls) or ""
    return " ".join(text.split("\n\n")[0].split())


def source(cls: type) -> str:
    """The papers that the docstring, or else its module's, names."""
    for text in (inspect.getdoc(cls) or "", inspect.getdoc(inspect.getmodule(cls)) or ""):
        found = re.findall(r"arXiv:(\d{4}\.\d{4,5})", text)
        if found:
            return " ".join(dict.fromkeys(found))
    return ""


def _new(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold cyan", box=SIMPLE_HEAD)
    made.show_edge, made.padding = False, (0, 1, 0, 0)  # eighty columns are enough for every number and every name
    for column in columns:
        whole = column in (*right, "name", "size")
        width = PAPER_WIDTH if column == "arXiv" else None
        made.add_column(column, justify="right" if column in right else "left", overflow="fold", no_wrap=whole, min_width=width)
    return made


def _encoders(room: str) -> Table:
    numbers = ("parameters", "tables", "omitted", "tokens", "width")
    made = _new("encoders", "size", *numbers, "arXiv", right=numbers)
    made.caption = "tables are fixed values; omitted are heads of the published model (`weft show`)"
    made.caption_justify = "left"
    for name, cls in catalogue.parts("encoders").items():
        sizes = _sizes(cls)
        several = sizes[0][0] != DEFAULT
        if several:
            made.add_row(name, *("" for _ in numbers), source(cls))
        for size, config in sizes:
            tokens = count(config.layout().positions) if isinstance(config, ModalityEncoder.Config) else f"<= {config.context}"
            left_out, (parameters, tables) = sum(omitted(config).values()), _counts_of(config)
            row = (parameters, tables, _millions(left_out), tokens, count(config.output_width))
            made.add_row(*((f"  {size}", *row) if several else (name, *row, source(cls))))
    return made


def _counts_of(config: Any) -> tuple[str, str]:
    """Parameters and table values of a part, where what it is built from is installed: a wrapper's library may be missing.

    A wrapper counts itself, because loading its library takes longer than all the rest.
    """
    if hasattr(config, "library") and find_spec(config.library) is None:
        return f"needs {config.library}", ""
    if hasattr(config, "num_parameters"):
        return count(config.num_parameters), ""
    try:
        with without_values():
            part = config.build()
    except MissingLibrary as error:
        return f"needs {error.library}", ""
    tables = num_table_values(part)
    return count(num_parameters(part)), _millions(tables)


def _millions(number: int) -> str:
    return f"{number / 1e6:,.1f}M" if number else ""


def _count_of(config: Any) -> str:
    return _counts_of(config)[0]


def _projectors(room: str) -> Table:
    made = _new(
        f"projectors (from a {EXAMPLE_GRID.height}x{EXAMPLE_GRID.width} grid, {EXAMPLE_WIDTHS[0]} to {EXAMPLE_WIDTHS[1]} wide)",
        "name", "parameters", "tables", "tokens", "purpose", "arXiv", right=("parameters", "tables", "tokens"),
    )  # fmt: skip
    for name, cls in catalogue.parts("projectors").items():
        config = _fitting(cls)
        with without_values():
            part = config.build(*EXAMPLE_WIDTHS)
        tables = num_table_values(part)
        costs = (count(num_parameters(part)), _millions(tables), count(config.num_tokens(EXAMPLE_GRID)))
        made.add_row(name, *costs, purpose(cls), source(cls))
    return made


def _language_models(room: str) -> Table:
    made = _new(
        "language-models",
        "name",
        "size",
        "parameters",
        "context",
        "vocabulary",
        "arXiv",
        right=("parameters", "context", "vocabulary"),
    )
    for name, cls in catalogue.parts("language_models").items():
        for size, config in _sizes(cls):
            row = (_count_of(config), count(config.context), count(config.vocabulary))
            made.add_row(name, size, *row, source(cls))
    return made


def _recipes(room: str) -> Table:
    from weft.recipes.catalogue import recipe, recipe_names, sizes_of

    made = _new("recipes", "name", "sizes", "stages", "about", "arXiv")
    for name in recipe_names():
        example = recipe(name, None)
        stages = " -> ".join(stage.name for stage in example.stages)
        made.add_row(name, ", ".join(sizes_of(name)), stages, example.about, example.paper)
    return made


def _benchmarks(room: str) -> Table:
    from weft.evaluation.catalogue import benchmarks

    made = _new("benchmarks", "name", "about")
    for name, cls in benchmarks().items():
        made.add_row(name, purpose(cls))
    return made


def _plain(room: str) -> Table:
    made = _new(room, "name", "purpose", "arXiv")
    for name, cls in catalogue.parts(room.replace("-", "_")).items():
        made.add_row(name, purpose(cls), source(cls))
    return made


_TABLES: dict[str, Callable[[str], Table]] = {
    "encoders": _encoders,
    "projectors": _projectors,
    "language-models": _language_models,
    "recipes": _recipes,
    "benchmarks": _benchmarks,
}


def _sizes(cls: Any) -> list[tuple[str, Any]]:
    config: type[ModalityEncoder.Config | TextEncoder.Config | LanguageModel.Config] = cls.Config
    return list(config.sizes().items()) or [(DEFAULT, config())]


def _fitting(cls: Any) -> InputProjector.Config:
    """A projector's config with room for the example grid."""
    config: InputProjector.Config = cls.Config()
    if hasattr(config, "capacity"):
        return cls.Config(capacity=EXAMPLE_GRID.positions)  # type: ignore[no-any-return]
    return config
