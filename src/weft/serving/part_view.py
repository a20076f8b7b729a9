"""An encoder, a projector or a language model taken apart: what each of its sizes costs, takes and gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.text import Text
from rich.tree import Tree
from torch import nn

from weft.core.interfaces import InputProjector, LanguageModel, ModalityEncoder
from weft.core.layout import MediaLayout
from weft.serving.chosen_part import ROOMS, ChosenPart
from weft.serving.part_costs import EXAMPLE_GRID, EXAMPLE_WIDTHS, built, costs_of, fitting
from weft.serving.part_tables import purpose, source
from weft.serving.quantities import count, counts
from weft.systems.accounting import omitted, parts


def part_view(chosen: ChosenPart) -> Iterator[RenderableType]:
    """What `weft show` prints of a part, piece by piece; of a single size also what is inside."""
    papers = ", ".join(f"arXiv:{paper}" for paper in source(chosen.cls).split())
    yield Text.assemble((chosen.name, "bold"), f", {ROOMS[chosen.room]}, {papers}")
    yield Text(purpose(chosen.cls))
    alone = len(chosen.configs) == 1
    for size, config in chosen.configs.items():
        fitted = fitting(config)
        tree = Tree(f"[bold]{size}[/]")
        for title, told in _facts(fitted).items():
            tree.add(f"[cyan]{title:12}[/] {escape(told)}")
        if alone and not hasattr(config, "library"):  # a wrapper's is another's
            _grow(tree, fitted)
        yield tree
    if alone and len(chosen.sizes) > 1:
        yield Text(f"All sizes: {', '.join(chosen.sizes)}.", style="dim")


def _facts(config: Any) -> dict[str, str]:
    costs = costs_of(config)
    facts = {
        "parameters": costs.told,
        "fixed tables": f"{count(costs.tables)} values" if costs.tables else "none",
        "omitted": counts(omitted(config)) or "nothing",
    }
    return facts | _shapes(config)


def _shapes(config: Any) -> dict[str, str]:
    """What goes in and what comes out."""
    if isinstance(config, InputProjector.Config):
        width, language_width = EXAMPLE_WIDTHS
        tokens = count(config.num_tokens(EXAMPLE_GRID))
        return {
            "takes": f"{_grid(EXAMPLE_GRID)} features, {count(width)} wide, for example",
            "gives": f"{tokens} tokens per medium, {count(language_width)} wide",
        }
    wide = f"{count(config.output_width)} wide"
    if isinstance(config, LanguageModel.Config):
        room = f"at most {count(config.context)} tokens of a vocabulary of {count(config.vocabulary)}"
        return {"takes": room, "gives": f"hidden states, {wide}"}
    if isinstance(config, ModalityEncoder.Config):
        unit, layout = " x ".join(map(count, config.unit_shape)), config.layout()
        tokens = f"{count(layout.positions)} tokens per medium"
        return {"takes": f"{config.modality} units of {unit}", "gives": f"{_grid(layout)} features: {tokens}, {wide}"}
    return {"takes": f"texts of at most {count(config.context)} tokens", "gives": f"one vector a text, {wide}"}


def _grid(layout: MediaLayout) -> str:
    units = f"{layout.num_units} x " if layout.num_units > 1 else ""
    return f"{units}{layout.height}x{layout.width}"


def _grow(tree: Tree, config: Any) -> None:
    """The parts inside, one level deep; a row of blocks is one line, and what is tied to something above says so."""
    whole = built(config)
    if not (inside := parts(whole)):
        return
    branch = tree.add("[cyan]inside[/]")
    seen: set[int] = set()
    for part in inside:
        held = getattr(whole, part.name)
        new = {id(p) for p in (held.parameters() if isinstance(held, nn.Module) else (held,))}
        kinds = {child.kind for child in part.children}
        row = f"{len(part.children)} x {kinds.pop()}" if part.kind == "ModuleList" and len(kinds) == 1 else part.kind
        told = "tied to the above" if new <= seen else count(part.parameters)
        branch.add(f"{escape(part.name)}  [cyan]{row}[/]  {told}")
        seen |= new
