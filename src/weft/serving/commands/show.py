"""`weft show`: a recipe taken apart, and what it costs, before anything is downloaded or trained."""

from __future__ import annotations

from typing import Annotated

import typer

from weft.serving.options import Override, Size, Tiny


def show(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="`weft list recipes` shows them.")],
    size: Size = None,
    tiny: Tiny = False,
    settings: Override = None,
    text_tokens: Annotated[
        int, typer.Option("--text-tokens", help="Text of the sample that costs are counted on.", min=1)
    ] = 128,
    as_json: Annotated[
        bool, typer.Option("--json", help="The recipe in its saved form instead, to edit or to compare.")
    ] = False,
) -> None:
    """Show a recipe: parts, parameters, tokens per medium, arithmetic, and memory and trained share by stage."""
    from weft.core import config
    from weft.serving.chosen_recipe import chosen_recipe

    chosen = chosen_recipe(recipe, size, tiny, settings)
    if as_json:
        typer.echo(config.dumps(chosen), nl=False)
        return
    from rich.console import Console

    from weft.serving.recipe_view import recipe_view

    console = Console()
    for view in recipe_view(chosen, text_tokens):
        console.print(view)
