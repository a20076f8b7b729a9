"""A recipe as a tree of parts and a table of stages."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from weft.core.interfaces import System
from weft.serving.quantities import count, gibibytes, percent, short
from weft.systems.accounting import Part, SampleShape, num_parameters, on_meta, parts
from weft.systems.dual_encoder import DualEncoder
from weft.systems.multimodal_lm import MultimodalLM
from weft.training.memory import StageCost, stage_cost
from weft.training.stage import Recipe, Stage


def recipe_view(recipe: Recipe, text_tokens: int) -> Iterator[RenderableType]:
    """What `weft show` prints, piece by piece."""
    size = f" {recipe.size}" if recipe.size else ""
    paper = f", arXiv:{recipe.paper}" if recipe.paper else ""
    yield Text.assemble((f"{recipe.name}{size}", "bold"), f": {recipe.about}{paper}")
    systems = _systems(recipe)
    yield _tree(recipe, systems[recipe.stages[-1].name])
    yield _stages(recipe)
    costs = {stage.name: stage_cost(stage, systems[stage.name], sample_of(stage, text_tokens)) for stage in recipe.stages}
    yield _costs(recipe, costs)
    yield Text(
        f"One sample is one medium a stream and {text_tokens} text tokens; a multiply-add is two operations. Parameters, "
        "gradients and optimizer state in float32 on one device, with a bf16 copy of the parameters where a stage computes "
        "in bf16; activations with a memory-saving attention kernel, nothing recomputed.",
        style="dim",
    )


def _systems(recipe: Recipe) -> dict[str, System]:
    """Each stage's system without memory; stages that go on with one share it."""
    built: list[System] = []
    systems: dict[str, System] = {}
    for stage in recipe.stages:
        same = [system for system in built if system.config == stage.system]
        systems[stage.name] = same[0] if same else on_meta(stage.system)
        built.append(systems[stage.name])
    return systems


def sample_of(stage: Stage, text_tokens: int) -> SampleShape:
    """One medium of each stream that the stage's system has, at the processor's size, and some text."""
    system, transforms = stage.system, stage.processor.transforms
    if isinstance(system, DualEncoder.Config):
        streams = [system.stream]
    else:
        streams = list(system.streams) if isinstance(system, MultimodalLM.Config) else []
    room = min(text_tokens, system.context)
    return SampleShape(room, {name: (1, 3, transforms[name].size, transforms[name].size) for name in streams})


def _tree(recipe: Recipe, system: System) -> Tree:
    tree = Tree(f"[bold]{type(system).__name__}[/]  {count(num_parameters(system))} parameters")
    for part in parts(system):
        _grow(tree, part, system)
    for fusion in getattr(system, "fusions", ()):
        streams = ", ".join(fusion.config.streams)
        tree.add(f"fusion  [cyan]{type(fusion).__name__}[/]  reads {streams}")
    return tree


def _grow(tree: Tree, part: Part, system: System) -> None:
    if part.kind in ("ModuleDict", "ModuleList"):
        for child in part.children:
            _grow(tree, child, system)
        return
    branch = tree.add(f"{escape(part.name)}  [cyan]{part.kind}[/]  {count(part.parameters)}{_tokens(part, system)}")
    for child in part.children:
        _grow(branch, child, system)


def _tokens(part: Part, system: System) -> str:
    """What a stream's medium becomes on its way."""
    room, _, name = part.name.partition(".")
    if room != "streams" or "." in name or not isinstance(system, MultimodalLM):
        return ""
    layout = system.config.layout(name)
    return f"  {layout.height}x{layout.width} features -> {count(system.config.streams[name].num_tokens)} tokens per medium"


def _stages(recipe: Recipe) -> Table:
    table = _new("stages", "stage", "what it is for", "trains", "template", "batch", "length", "steps", "peak rate", "schedule")
    for stage in recipe.stages:
        length = f"{stage.epochs:g} epoch{'s' if stage.epochs != 1 else ''}" if stage.steps is None else count(stage.steps)
        warmup = f"{stage.schedule.warmup:.0%}" if stage.schedule.warmup < 1 else f"{stage.schedule.warmup:,.0f} steps"
        table.add_row(
            stage.name, stage.title, "\n".join(escape(p) for p in stage.train), stage.processor.template,
            count(stage.batch_size), count(stage.max_tokens), length, f"{stage.optimizer.learning_rate:g}",
            f"{stage.schedule.decay}, warm-up {warmup}",
        )  # fmt: skip
    return table


def _costs(recipe: Recipe, costs: dict[str, StageCost]) -> Table:
    table = _new("cost by stage", "stage")
    for title in ("trained", "share", "forward", "backward", "weights", "gradients", "optimizer", "activations"):
        table.add_column(title, justify="right")
    for name, cost in costs.items():
        table.add_row(
            name, count(cost.trained_parameters), percent(cost.share),
            short(cost.sample.forward_flops, "FLOP"), short(cost.sample.backward_flops, "FLOP"),
            gibibytes(cost.weight_bytes), gibibytes(cost.gradient_bytes), gibibytes(cost.optimizer_bytes),
            f"{gibibytes(cost.activation_bytes)} / sample",
        )  # fmt: skip
    return table


def _new(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold cyan")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
