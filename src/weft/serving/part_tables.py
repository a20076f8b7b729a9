"""Tables of the parts that exist, with what each costs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from weft.core import catalogue
from weft.core.interfaces import ModalityEncoder
from weft.serving.part_costs import DEFAULT, EXAMPLE_GRID, EXAMPLE_WIDTHS, costs_of, fitting, sizes_of
from weft.serving.quantities import count
from weft.systems.accounting import omitted

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
    made.caption = "tables are fixed values, omitted the published model's heads: `weft show NAME`"
    made.caption_justify = "left"
    for name, cls in catalogue.parts("encoders").items():
        sizes = sizes_of(cls)
        several = DEFAULT not in sizes
        if several:
            made.add_row(name, *("" for _ in numbers), source(cls))
        for size, config in sizes.items():
            tokens = count(config.layout().positions) if isinstance(config, ModalityEncoder.Config) else f"<= {config.context}"
            costs, left_out = costs_of(config), sum(omitted(config).values())
            row = (costs.told, _millions(costs.tables), _millions(left_out), tokens, count(config.output_width))
            made.add_row(*((f"  {size}", *row) if several else (name, *row, source(cls))))
    return made


def _millions(number: int) -> str:
    return f"{number / 1e6:,.1f}M" if number else ""


def _projectors(room: str) -> Table:
    made = _new(
        f"projectors (from a {EXAMPLE_GRID.height}x{EXAMPLE_GRID.width} grid, {EXAMPLE_WIDTHS[0]} to {EXAMPLE_WIDTHS[1]} wide)",
        "name", "parameters", "tables", "tokens", "purpose", "arXiv", right=("parameters", "tables", "tokens"),
    )  # fmt: skip
    for name, cls in catalogue.parts("projectors").items():
        part: Any = cls
        config = fitting(part.Config())
        costs = costs_of(config)
        row = (costs.told, _millions(costs.tables), count(config.num_tokens(EXAMPLE_GRID)))
        made.add_row(name, *row, purpose(cls), source(cls))
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
        for size, config in sizes_of(cls).items():
            row = (costs_of(config).told, count(config.context), count(config.vocabulary))
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
