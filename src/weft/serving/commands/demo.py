"""`weft demo`: from nothing to a model that answers questions about a picture, without a download."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from weft.serving.commands.chat import chat
from weft.serving.options import Processes, Seed


def demo(
    minutes: Annotated[float, typer.Option("--minutes", help="Training time to plan for, in minutes.", min=0.05)] = 8.0,
    seed: Seed = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="The run folder.")] = Path("demo"),
    processes: Processes = 1,
) -> None:
    """Build, train and measure a small multimodal model on real handwriting; then talk to it."""
    from rich.console import Console

    from weft.recipes.demo import run_demo
    from weft.training.interrupts import TrainingInterrupted

    console = Console()
    try:
        run_demo(output, minutes, seed, console, processes=processes)
    except TrainingInterrupted as stop:
        raise TrainingInterrupted(f"{stop}; the same command goes on") from None
    picture = output / "report" / "canvas.png"
    if console.is_terminal and sys.stdin.isatty() and typer.confirm("Talk to it now?", default=True):
        chat(str(output / "model"), image=[str(picture)])
