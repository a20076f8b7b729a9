"""`weft eval`: a model on a benchmark, with its baselines beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weft.serving.options import Device, ModelPath, Override, Parts


def evaluate(
    model: ModelPath,
    benchmark: Annotated[str, typer.Option("--benchmark", "-b", help="`weft list benchmarks` shows them.")] = "desk",
    settings: Override = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            show_default=False,
            help="Keep answers and scores here; a second call goes on where the first stopped.",
        ),
    ] = None,
    text_only: Annotated[
        str | None, typer.Option("--text-only", metavar="MODEL", help="A text-only model as a baseline.", show_default=False)
    ] = None,
    blind: Annotated[bool, typer.Option("--blind/--no-blind", help="Also ask with the media of other questions.")] = True,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Questions at a time; changes no answer.", min=1)] = 32,
    device: Device = "auto",
    precision: Annotated[str | None, typer.Option("--precision", help="fp32, bf16 or fp16.", show_default="as it is")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Of a hub name.", show_default=False)] = None,
    parts: Parts = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Measure a model. --set changes the benchmark, e.g. --set num_per_type=20."""
    from rich.console import Console

    from weft.evaluation.catalogue import benchmark_config
    from weft.evaluation.retrieval import RetrievalModel
    from weft.evaluation.runner import Answering, EvaluationSettings
    from weft.evaluation.runner import evaluate as run
    from weft.evaluation.zero_shot import ZeroShotModel
    from weft.recipes.loading import load_embedder, load_model
    from weft.recipes.starting_weights import assigned
    from weft.serving.chosen_recipe import with_overrides
    from weft.serving.device import chosen_device
    from weft.serving.precision import chosen_precision
    from weft.serving.score_table import EvaluationProgress, failures, score_table

    chosen = with_overrides(benchmark_config(benchmark), settings).build()
    where, dtype, beside = chosen_device(device), chosen_precision(precision), assigned(parts or ())
    loaded: Answering
    if chosen.classes:
        loaded = ZeroShotModel(load_embedder(model, where, dtype, revision, beside), chosen.classes, chosen.top)
    elif chosen.pairs is not None:
        loaded = RetrievalModel(load_embedder(model, where, dtype, revision, beside), chosen.pairs, chosen.top)
    else:
        loaded = load_model(model, where, dtype, revision, beside)
    baseline = load_model(text_only, where, dtype) if text_only is not None else None
    with EvaluationProgress(Console(stderr=True), chosen.titles) as progress:
        evaluation = run(
            loaded,
            chosen,
            EvaluationSettings(batch_size=batch_size, blind=blind, folder=output),
            text_only=baseline,
            progress=progress,
        )
    if as_json:
        import json

        typer.echo(json.dumps(evaluation.summary(), indent=2, ensure_ascii=False))
        return
    Console().print(score_table(evaluation))
    for line in failures(evaluation):
        Console().print(line, markup=False, highlight=False, soft_wrap=True)
    if output is not None:
        Console(stderr=True).print(f"answers and scores: [bold]{output}[/]", highlight=False)
