"""`weft compare`: parts of one kind, trained alike on the desk, beside what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weft.serving.options import Device


def compare(
    room: Annotated[str, typer.Argument(metavar="ROOM", help="projectors, encoders, fusions or systems.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "--out",
            "-o",
            show_default="comparison-ROOM",
            help="The folder; the same command goes on where it stopped.",
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="NAME,NAME", help="These candidates.", show_default="all")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            help="Of the last stage, earlier ones take at most as many; for systems of all stages together.",
            show_default="1400, or 1500 for systems",
            min=1,
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds",
            metavar="N|S,S",
            help="Of every candidate: how many, or which, as in 0,1,2.",
            show_default="3 of the most used, 1 of the rest",
        ),
    ] = None,
    questions: Annotated[int | None, typer.Option("--questions", help="Of each type.", show_default="100", min=2)] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few candidates with one seed and fewer steps: half an hour on two cores.")
    ] = False,
    device: Device = "auto",
    checkpoint_minutes: Annotated[float, typer.Option("--checkpoint-minutes", help="Between checkpoints.", min=0.01)] = 2.0,
) -> None:
    """Train each part of a kind, or each published system, from the same towers on the desk; show accuracy beside its costs.

    Fusions are the ways in which published systems show their pictures to a language model.

    Ctrl-C finishes the step and keeps the work.
    """
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    from weft.evaluation.report.words import duration
    from weft.recipes import comparison, comparison_plan, comparison_system_plan
    from weft.recipes.comparison_candidates import QUICK
    from weft.recipes.comparison_progress import ComparisonProgress
    from weft.recipes.comparison_table import NAME
    from weft.serving.device import chosen_device

    names = tuple(name.strip() for name in only.split(",") if name.strip()) if only else None
    budget = comparison_system_plan if room == comparison_system_plan.SYSTEMS else comparison_plan
    few = {**QUICK, comparison_system_plan.SYSTEMS: comparison_system_plan.SEVERAL_SEEDS}.get(room)
    plan = comparison_system_plan.plan_of(
        room,
        steps=steps or (budget.QUICK_STEPS if quick else budget.STEPS),
        seeds=_seeds(seeds) or ((0,) if quick else None),
        only=names or (few if quick else None),
        questions_per_type=questions
        or (comparison_plan.QUICK_QUESTIONS_PER_TYPE if quick else comparison_plan.QUESTIONS_PER_TYPE),
    )
    folder, console, where = output or Path(f"comparison-{room}"), Console(), chosen_device(device)
    progress = ComparisonProgress(console, plan.pieces, plan.num_questions)
    console.print(
        f"{len(plan.candidates)} {room}, {len(plan.rows)} rows of {max(map(plan.steps_of, plan.candidates)):,} steps: about "
        f"{duration(progress.expected)} on two CPU cores, less what {folder} holds already",
        highlight=False,
        soft_wrap=True,
    )
    found = comparison.compare(plan, folder, progress, where, 60 * checkpoint_minutes, own_processes=where == "cpu")
    console.print()
    console.print(found.terminal_table(console.width))
    console.print(f"[dim]{found.caption}[/]", highlight=False)
    for title, notes in found.notes.items():
        console.print(f"\n[bold]{title}[/]")
        for note in notes:
            console.print(Padding(Text(note), (0, 0, 0, 2)))
    console.print(f"\nTable and plot: [bold]{folder / NAME}[/].md .json .png .svg", highlight=False, soft_wrap=True)


def _seeds(text: str | None) -> tuple[int, ...] | None:
    """`3` is three seeds, `0,1,2` are these. Raises: ConfigError for anything else."""
    from weft.core.errors import ConfigError

    if text is None:
        return None
    try:
        numbers = tuple(int(number) for number in text.split(",") if number.strip())
    except ValueError:
        numbers = ()
    found = numbers if "," in text else tuple(range(numbers[0])) if numbers else ()
    if not found or min(found) < 0:
        raise ConfigError(f"--seeds takes how many, as in 3, or which, as in 0,1,2; got {text!r}")
    return tuple(dict.fromkeys(found))
