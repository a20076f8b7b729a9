"""`weft train`: a recipe, stage by stage, into a run folder."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weft.serving.options import Device, Override, Processes, Seed, Size, Tiny

if TYPE_CHECKING:
    from weft.core.interfaces import System


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="`weft list recipes` shows them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The run folder; a new one, or with --resume an old one.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="[STAGE[.PART]=]FILE",
            show_default=False,
            help="Conversations as LLaVA JSON, or documents as MMC4 or OBELICS write them: for every stage, for the one named "
            "or for a part of its mixture; repeatable, several files of a stage are mixed.",
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", help="The folder that pictures are named from.", show_default=False)
    ] = None,
    skip_broken: Annotated[
        bool,
        typer.Option(
            "--skip-broken",
            help="Leave out records and media that cannot be read; the log names and counts them. Also with --resume.",
        ),
    ] = False,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            show_default=False,
            help="A tokenizer.json, a tokenizer.model or a folder with one. --tiny trains its own.",
        ),
    ] = None,
    start: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="[PART=]PATH",
            show_default=False,
            help="Published weights to start a part of the first stage from, e.g. language_model=vicuna-7b-v1.5, or without "
            "PART= a whole model to train on; repeatable.",
        ),
    ] = None,
    size: Size = None,
    tiny: Tiny = False,
    settings: Override = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --output, bit for bit on the CPU.")] = False,
    seed: Seed = 0,
    device: Device = "auto",
    processes: Processes = 1,
    checkpoint_minutes: Annotated[float, typer.Option("--checkpoint-minutes", help="Between checkpoints.", min=0.01)] = 2.0,
    validate_every: Annotated[
        int | None, typer.Option("--validate-every", help="Steps between validation losses.", show_default="the end", min=1)
    ] = None,
    tensorboard: Annotated[
        bool | None,
        typer.Option(
            "--tensorboard/--no-tensorboard", help="Also write TensorBoard events.", show_default="where it is installed"
        ),
    ] = None,
) -> None:
    """Train a recipe. Ctrl-C finishes the step and keeps the work; a second Ctrl-C stops at once."""
    from rich.console import Console

    from weft.recipes.training_run import TrainingRun
    from weft.serving.chosen_recipe import chosen_recipe
    from weft.serving.device import chosen_device
    from weft.training.interrupts import TrainingInterrupted
    from weft.training.progress import progress_view

    console = Console()
    run = TrainingRun(
        recipe=chosen_recipe(recipe, size, tiny, settings),
        data=tuple(data or ()),
        images=images,
        skip_broken=skip_broken,
        tokenizer=tokenizer,
        start=tuple(start or ()),
        tiny=tiny,
    )
    trainer = run.trainer(
        output,
        seed=seed,
        device=chosen_device(device),
        processes=processes,
        callbacks=(progress_view(console),),
        checkpoint_seconds=60 * checkpoint_minutes,
        validate_every=validate_every,
        tensorboard=find_spec("tensorboard") is not None if tensorboard is None else tensorboard,
    )
    try:
        model = trainer.fit(resume=resume)
    except TrainingInterrupted as stop:
        raise TrainingInterrupted(f"{stop}; go on with --resume") from None
    console.print(f"The model is in [bold]{model}[/]{_what_next(run.recipe.system, model)}", highlight=False)


def _what_next(system: System.Config, model: Path) -> str:
    """How to talk to a model that writes; a tower that compares or listens has nothing to say."""
    from weft.systems.multimodal_lm import MultimodalSystem

    if not isinstance(system, MultimodalSystem.Config):
        return ""
    media = "".join(f" --{stream} FILE" for stream in ("image", "audio", "video") if stream in system.streams)
    return f"; talk to it: weft chat {model}{media}"
