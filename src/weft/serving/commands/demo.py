"""`weft demo`: from nothing to a model that answers questions about a picture, without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weft.serving.options import Seed


def demo(
    minutes: Annotated[float, typer.Option("--minutes", help="Training time to plan for, in minutes.", min=0.05)] = 8.0,
    seed: Seed = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="The run folder.")] = Path("demo"),
) -> None:
    """Build, train and measure a small multimodal model on real handwriting; then talk to it."""
    from rich.console import Console

    from weft.recipes.demo import run_demo

    run_demo(output, minutes, seed, Console())
