"""Tables of the parts that exist, with what each costs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from weft.core import catalogue
from weft.core.errors import MissingLibrary
from weft.core.interfaces import InputProjector, LanguageModel, ModalityEncoder, TextEncoder
from weft.core.layout import MediaLayout
from weft.serving.quantities import count
from weft.systems.accounting import num_parameters, without_values

EXAMPLE_GRID = MediaLayout(24, 24)  # LLaVA-1.5's
EXAMPLE_WIDTHS = (1024, 4096)
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
    made = _new("encoders", "name", "size", "parameters", "tokens", "width", "arXiv", right=("parameters", "tokens", "width"))
    for name, cls in catalogue.parts("encoders").items():
        papers = source(cls)
        for size, config in _sizes(cls):
            tokens = count(config.layout().positions) if isinstance(config, ModalityEncoder.Config) else f"<= {config.context}"
            made.add_row(name, size, _count_of(config), tokens, count(config.output_width), papers)
            papers = ""  # once a part, beside its first size
    return made


def _count_of(config: Any) -> str:
    """The parameters of a part, where what it is built from is installed: a wrapper's library may be missing."""
    try:
        return count(_built(config.build))
    except MissingLibrary as error:
        return f"needs {error.library}"


def _projectors(room: str) -> Table:
    made = _new(
        f"projectors (from a {EXAMPLE_GRID.height}x{EXAMPLE_GRID.width} grid, {EXAMPLE_WIDTHS[0]} to {EXAMPLE_WIDTHS[1]} wide)",
        "name", "parameters", "tokens", "purpose", "arXiv", right=("parameters", "tokens"),
    )  # fmt: skip
    for name, cls in catalogue.parts("projectors").items():
        config = _fitting(cls)
        tokens = count(config.num_tokens(EXAMPLE_GRID))
        made.add_row(name, count(_built(partial(config.build, *EXAMPLE_WIDTHS))), tokens, purpose(cls), source(cls))
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
    return list(config.sizes().items()) or [("default", config())]


def _fitting(cls: Any) -> InputProjector.Config:
    """A projector's config with room for the example grid."""
    config: InputProjector.Config = cls.Config()
    if hasattr(config, "capacity"):
        return cls.Config(capacity=EXAMPLE_GRID.positions)  # type: ignore[no-any-return]
    return config


def _built(build: Callable[[], torch.nn.Module]) -> int:
    with without_values():
        return num_parameters(build())
