"""`weft compare`: parts of one kind, trained alike on the desk, beside what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weft.serving.options import Device


def compare(
    room: Annotated[str, typer.Argument(metavar="ROOM", help="projectors or encoders.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", show_default="comparison-ROOM", help="The folder; the same command goes on where it stopped."
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="NAME,NAME", help="These candidates.", show_default="all")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", help="Of the last stage; earlier ones take at most as many.", show_default="2400", min=1),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", help="Of every candidate.", show_default="3 of the most used, 1 of the rest", min=1),
    ] = None,
    questions: Annotated[int | None, typer.Option("--questions", help="Of each type.", show_default="100", min=2)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few candidates with one seed: half an hour on two cores.")] = False,
    device: Device = "auto",
    checkpoint_minutes: Annotated[float, typer.Option("--checkpoint-minutes", help="Between checkpoints.", min=0.01)] = 2.0,
) -> None:
    """Train each part of a kind from the same towers on the desk; show accuracy beside tokens, arithmetic, time and memory.

    Ctrl-C finishes the step and keeps the work.
    """
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    from weft.evaluation.report.words import duration
    from weft.recipes import comparison
    from weft.recipes.comparison_candidates import QUICK
    from weft.recipes.comparison_progress import ComparisonProgress
    from weft.recipes.comparison_table import NAME
    from weft.serving.device import chosen_device

    names = tuple(name.strip() for name in only.split(",") if name.strip()) if only else None
    plan = comparison.Plan(
        room=room,
        steps=steps or (comparison.QUICK_STEPS if quick else comparison.STEPS),
        num_seeds=seeds or (1 if quick else None),
        only=names or (QUICK.get(room) if quick else None),
        questions_per_type=questions or (comparison.QUICK_QUESTIONS_PER_TYPE if quick else comparison.QUESTIONS_PER_TYPE),
    )
    folder, console, where = output or Path(f"comparison-{room}"), Console(), chosen_device(device)
    progress = ComparisonProgress(console, plan.pieces, plan.num_questions)
    console.print(
        f"{len(plan.candidates)} {room}, {len(plan.rows)} rows of {plan.steps_a_row:,} steps: about "
        f"{duration(progress.expected)} on two CPU cores, less what {folder} holds already",
        highlight=False,
        soft_wrap=True,
    )
    found = comparison.compare(plan, folder, progress, where, checkpoint_seconds=60 * checkpoint_minutes)
    console.print()
    console.print(found.terminal_table(console.width))
    console.print(f"[dim]{found.caption}[/]", highlight=False)
    for title, notes in found.notes.items():
        console.print(f"\n[bold]{title}[/]")
        for note in notes:
            console.print(Padding(Text(note), (0, 0, 0, 2)))
    console.print(f"\nTable and plot: [bold]{folder / NAME}[/].md .json .png .svg", highlight=False, soft_wrap=True)
