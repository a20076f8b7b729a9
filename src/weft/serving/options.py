"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Size = Annotated[str | None, typer.Option("--size", help="A published size; `weft list` shows them.", show_default=False)]
Tiny = Annotated[bool, typer.Option("--tiny", help="The recipe at CPU size on the offline desk: its stages in seconds.")]
Override = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Set a field of the recipe, e.g. stages.align.steps=200; repeatable.",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="What every random choice follows from.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps; auto takes an accelerator where there is one.")]
ModelPath = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A model folder, a run folder, a published folder, a file of LAVIS (.pth), or a hub name."
    ),
]
Parts = Annotated[
    list[str] | None,
    typer.Option(
        "--from",
        metavar="PART=PATH",
        help="Where a published model leaves a part out: language_model, streams.image.encoder, tokenizer, or a delta's base; "
        "repeatable.",
        show_default=False,
    ),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="The folder to write to.", show_default=False)]
Processes = Annotated[
    int, typer.Option("--processes", help="On a CPU: train in so many processes of one thread, which share every step.", min=1)
]
