"""`weft show`: a recipe or a part taken apart, and what it costs, before anything is downloaded or trained."""

from __future__ import annotations

from typing import Annotated

import typer

from weft.serving.options import Override, Size, Tiny


def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|PART",
            help="A recipe, an encoder, a projector or a language model: `weft list` shows them. Where a recipe has a part's "
            "name, the part is ROOM/NAME: encoders/hubert.",
        ),
    ],
    size: Size = None,
    tiny: Tiny = False,
    settings: Override = None,
    text_tokens: Annotated[
        int, typer.Option("--text-tokens", help="Text of the sample that costs are counted on.", min=1)
    ] = 128,
    as_json: Annotated[
        bool, typer.Option("--json", help="The recipe or the part in its saved form instead, to edit or to compare.")
    ] = False,
) -> None:
    """Show a recipe: parts, parameters, tokens per medium, arithmetic, and memory and trained share by stage.

    Of a part: parameters, fixed tables, what it omits of the published model, and tokens per medium, for every size or --size.
    """
    from weft.core import config
    from weft.serving.chosen_part import ChosenPart, chosen_part
    from weft.serving.chosen_recipe import chosen_recipe

    chosen = chosen_part(name, size, tiny, settings) or chosen_recipe(name, size, tiny, settings)
    if as_json:
        typer.echo(config.dumps(chosen.only() if isinstance(chosen, ChosenPart) else chosen), nl=False)
        return
    from rich.console import Console

    from weft.serving.part_view import part_view
    from weft.serving.recipe_view import recipe_view

    console = Console()
    for view in part_view(chosen) if isinstance(chosen, ChosenPart) else recipe_view(chosen, text_tokens):
        console.print(view)
