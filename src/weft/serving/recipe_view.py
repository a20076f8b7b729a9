"""A recipe as a tree of its parts and a tree of its stages."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.markup import escape
from rich.text import Text
from rich.tree import Tree

from weft.core.interfaces import System
from weft.data.dataset import Dataset
from weft.data.datasets.mixture import Mixture
from weft.serving.quantities import count, counts, percent, short, size_of_memory
from weft.systems.accounting import Part, SampleShape, num_parameters, on_meta, parts
from weft.systems.dual_encoder import DualEncoder
from weft.systems.fusion_encoder import FusionEncoder
from weft.systems.media_encoder import MediaEncoder
from weft.systems.multimodal_lm import MultimodalSystem
from weft.training.memory import StageCost, stage_cost
from weft.training.stage import Recipe, Stage


def recipe_view(recipe: Recipe, text_tokens: int) -> Iterator[RenderableType]:
    """What `weft show` prints, piece by piece."""
    size = f" {recipe.size}" if recipe.size else ""
    paper = f", arXiv:{recipe.paper}" if recipe.paper else ""
    yield Text.assemble((f"{recipe.name}{size}", "bold"), f": {recipe.about}{paper}")
    systems = _systems(recipe)
    yield _tree(recipe, systems[recipe.stages[-1].name])
    costs = {stage.name: stage_cost(stage, systems[stage.name], sample_of(stage, text_tokens)) for stage in recipe.stages}
    yield _stages(recipe, costs)
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
    if isinstance(system, DualEncoder.Config | MediaEncoder.Config | FusionEncoder.Config):
        streams = [system.stream]
    else:
        streams = list(system.streams) if isinstance(system, MultimodalSystem.Config) else []
    room = min(text_tokens, system.context)
    layouts = {name: transforms[name].usual_layout(system.layout(name)) for name in streams}
    units = {name: (layout.num_units, *transforms[name].unit_shape) for name, layout in layouts.items()}
    return SampleShape(room, units, layouts)


def _tree(recipe: Recipe, system: System) -> Tree:
    tree = Tree(f"[bold]{type(system).__name__}[/]  {count(num_parameters(system))} parameters")
    for part in parts(system):
        _grow(tree, part, system)
    for fusion in getattr(system, "fusions", ()):
        streams = ", ".join(fusion.config.streams)
        reads = f"reads {streams}" if streams else "tells tokens by their modality"
        tree.add(f"fusion  [cyan]{type(fusion).__name__}[/]  {reads}")
    return tree


def _grow(tree: Tree, part: Part, system: System) -> None:
    if part.kind in ("ModuleDict", "ModuleList"):
        for child in part.children:
            _grow(tree, child, system)
        return
    costs = f"{count(part.parameters)}{_tables(part)}{_omitted(part, system)}"
    branch = tree.add(f"{escape(part.name)}  [cyan]{part.kind}[/]  {costs}{_tokens(part, system)}")
    for child in part.children:
        _grow(branch, child, system)


def _tables(part: Part) -> str:
    return f" + {count(part.table_values)} in fixed tables" if part.table_values else ""


def _omitted(part: Part, system: System) -> str:
    """What the published model has beside a tower; a dual encoder has the projections itself."""
    own = {"projection"} if isinstance(system, DualEncoder) else set()
    found = {name: parameters for name, parameters in part.omitted.items() if name not in own}
    return f", without the published {counts(found)}" if found else ""


def _tokens(part: Part, system: System) -> str:
    """What a stream's medium becomes on its way."""
    room, _, name = part.name.partition(".")
    if room != "streams" or "." in name or not isinstance(system, MultimodalSystem):
        return ""
    layout = system.config.layout(name)
    return f"  {layout.height}x{layout.width} features -> {count(system.config.streams[name].num_tokens)} tokens per medium"


def _stages(recipe: Recipe, costs: dict[str, StageCost]) -> Tree:
    tree = Tree("[bold]stages[/]")
    for stage in recipe.stages:
        branch = tree.add(f"[bold]{stage.name}[/]  {escape(stage.title)}")
        for title, told in _facts(stage, costs[stage.name]).items():
            branch.add(f"[cyan]{title:9}[/] {escape(told)}")
    return tree


def _facts(stage: Stage, cost: StageCost) -> dict[str, str]:
    """What a stage does and takes, a line each."""
    length = f"{stage.epochs:g} epoch{'s' if stage.epochs != 1 else ''}" if stage.steps is None else f"{stage.steps:,} steps"
    warmup = f"{stage.schedule.warmup:.0%}" if stage.schedule.warmup < 1 else f"{stage.schedule.warmup:,.0f} steps"
    optimizer = stage.optimizer
    rate = f"{optimizer.learning_rate:g}" + (f", matrices {optimizer.matrix_rate:g}" if optimizer.name == "muon" else "")
    together = stage.micro_batch_size or stage.batch_size
    return {
        "trains": f"{' '.join(stage.train)}: {count(cost.trained_parameters)} parameters, {percent(cost.share)}",
        "data": f"{_named(stage.data)}, template {stage.processor.template}, at most {count(stage.max_tokens)} tokens a sample",
        "steps": f"{length} of {count(stage.batch_size)} samples",
        "optimizer": f"{optimizer.name}, peak rate {rate}, {stage.schedule.decay}, warm-up {warmup}, {stage.precision}",
        "a sample": f"{short(cost.sample.forward_flops, 'FLOP')} forward, {short(cost.sample.backward_flops, 'FLOP')} backward",
        "memory": f"weights {size_of_memory(cost.weight_bytes)}, gradients {size_of_memory(cost.gradient_bytes)}, "
        f"optimizer {size_of_memory(cost.optimizer_bytes)}, activations {size_of_memory(cost.activation_bytes)} a sample: "
        f"{size_of_memory(cost.total_bytes(together))} with {count(together)} at a time",
    }


def _named(data: Dataset.Config) -> str:
    """A data set, or the parts of a mixture with their weights."""
    name = type(data).__qualname__.removesuffix(".Config")
    if not isinstance(data, Mixture.Config):
        return name
    by = {"given": "", "sizes": " by size", "roots": " by the roots of their sizes"}[data.weighting]
    return f"{name}{by} of {', '.join(f'{part} {config.weight:g}' for part, config in data.parts.items())}"
