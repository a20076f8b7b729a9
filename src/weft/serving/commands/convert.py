"""`weft convert`: the same weights in another layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weft.serving.options import Parts


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A Weft model or run folder, a published folder, a file of LAVIS (.pth), or a hub name.",
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The folder to write; it must be new or empty.")],
    to: Annotated[str, typer.Option("--to", help="transformers or weft.")] = "transformers",
    precision: Annotated[str | None, typer.Option("--precision", help="fp32, bf16 or fp16.", show_default="as it is")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Of a hub name.", show_default=False)] = None,
    parts: Parts = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PATH=VALUE",
            help="Change a field of the system that no weight depends on, where the layout asks for it; repeatable.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a model in another layout, whole or not at all."""
    from typing import cast

    from rich.console import Console

    from weft.recipes.converting import Layout
    from weft.recipes.converting import convert as write
    from weft.recipes.starting_weights import assigned
    from weft.serving.chosen_recipe import parsed_settings
    from weft.serving.precision import chosen_precision

    path = write(
        source,
        target,
        cast(Layout, to),
        dtype=chosen_precision(precision),
        revision=revision,
        parts=assigned(parts or ()),
        settings=parsed_settings(settings),
    )
    Console().print(f"{source} is now in {to} layout: [bold]{path}[/]", highlight=False)
