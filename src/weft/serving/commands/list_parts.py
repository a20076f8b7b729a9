"""`weft list`: what there is to build with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

ROOMS = ("encoders", "projectors", "fusion", "language-models", "systems", "objectives", "benchmarks", "recipes")


def list_parts(
    rooms: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ROOM]...", help=", ".join(ROOMS) + "; all without an argument.", show_default=False),
    ] = None,
) -> None:
    """List parts and recipes: sizes, parameters, tokens per medium, papers."""
    from rich.console import Console

    from weft.core.errors import unknown_name
    from weft.serving import part_tables

    known = {room.replace("_", "-") for room in ROOMS}
    chosen = [room.replace("_", "-") for room in rooms or ROOMS]
    for room in chosen:
        if room not in known:
            raise unknown_name("room", room, ROOMS)
    console = Console()
    for room in chosen:
        table: Table = part_tables.table(room)
        console.print(table)
