"""`weft data`: look at data before training on it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from weft.serving.options import Seed

app = typer.Typer(help="Look at data before training on it.", no_args_is_help=True)


@app.callback()
def _data() -> None:
    """Keeps `desk` a subcommand while it is the only one."""


@app.command("desk")
def desk(
    preview: Annotated[Path, typer.Option("--preview", help="Write a sheet of samples to this PNG.")],
    number: Annotated[int, typer.Option("--number", "-n", help="Samples on the sheet.", min=1, max=100)] = 8,
    split: Annotated[str, typer.Option("--split", help="train, validation or test.")] = "train",
    of: Annotated[str, typer.Option("--of", help="pictures, speech, speech_and_picture or films.")] = "pictures",
    seed: Seed = 0,
) -> None:
    """Draw samples of the desk, the offline world: pictures, sounds or films, questions and answers."""
    from typing import cast

    from rich.console import Console

    from weft.core.errors import ConfigError, unknown_name
    from weft.data.desk import Desk, Split
    from weft.data.desk.listening import LISTENING, DeskListening
    from weft.data.desk.preview import preview as write_preview
    from weft.data.desk.preview import preview_media
    from weft.data.desk.watching import DeskWatching
    from weft.training.atomic import PARTIAL

    if preview.suffix.lower() != ".png":
        raise ConfigError(f"--preview writes a PNG; give it a name that ends in .png, not {preview.name!r}")
    if of not in (known := ("pictures", "films", *LISTENING)):
        raise unknown_name("kind of desk sample", of, known)
    drawn = cast(Split, split)
    partial = preview.with_name(f"{PARTIAL}{preview.name}")
    try:
        if of == "pictures":
            write_preview(Desk(drawn, seed), partial, number)
        elif of == "films":
            preview_media(DeskWatching.Config(split=drawn, seed=seed).build(), partial, number)
        else:
            kind = next(kind for kind in LISTENING if kind == of)
            preview_media(DeskListening.Config(split=drawn, seed=seed, kind=kind).build(), partial, number)
        os.replace(partial, preview)
    finally:
        partial.unlink(missing_ok=True)
    Console().print(f"{number} {of} of desk/{split}, seed {seed}: [bold]{preview}[/]")
