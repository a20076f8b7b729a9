"""Published weights for the parts of a system that is about to be trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from weft.checkpoints import bert, blip_2_vision, qformer
from weft.checkpoints.blip_2_pretraining import read_bert
from weft.checkpoints.checkpoint_format import CheckpointFormat, checkpoint_formats, format_of
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.visual_expert import with_experts
from weft.checkpoints.weight_files import WeightFiles
from weft.core.errors import CheckpointError, ConfigError, unknown_name
from weft.core.interfaces import LanguageModel, ModalityEncoder, System
from weft.encoders.eva_clip import EvaClipVision
from weft.layers.slots import SLOTS, empty_slots
from weft.layers.temporal_attention import without_time
from weft.projectors.qformer import QFormer
from weft.recipes.base_parts import refuse_delta
from weft.recipes.encoder_loading import PublishedEncoder
from weft.recipes.loading import AS_NAMED, read_contents
from weft.recipes.model_folders import Description, FolderContents, describe, find_model_folder
from weft.systems.accounting import on_meta
from weft.systems.fusion_encoder import FusionEncoder
from weft.training.stage import Recipe

_ARITHMETIC = (
    "num_heads", "activation", "norm_eps", "pre_norm", "stride_placement", "block", "gated",
    "rope_theta", "rope_scaling", "window", "log_scaling_context",
)  # fmt: skip
"""Settings of a part that no shape shows."""


class Start(NamedTuple):
    """What `--from` was told: a folder for the whole system, if any, and paths by part."""

    whole: str | None
    parts: dict[str, str]


def starting_weights(assignments: Sequence[str]) -> Callable[[System], None] | None:
    """What fills a fresh system from `PART=PATH` assignments, or from a whole model's PATH; None where there are none.

    A part is named by the prefix of its parameters (`language_model`, `streams.image.encoder`). A path is a published folder,
    a hub name, or a Weft model folder: of the part alone, or of a whole model that has it. Every parameter of the part is
    filled, but for what a fusion put between a language model's layers: that starts anew where the files know of nothing
    there. The Q-Former of BLIP-2's first stage may start from a BERT, which fills all that it has itself. A path may also be a
    LAVIS file of BLIP-2 or InstructBLIP, for an image tower, a Q-Former or its `transformer`.

    A PATH alone fills the whole system; parts that its folder leaves out are given beside it, as `load_system` takes them.

    Raises: ConfigError for what is neither, and for two whole models; later, for a part that the system does not have.
    """
    return _filling(started(assignments)) if assignments else None


def _filling(start: Start) -> Callable[[System], None]:
    def fill(system: System) -> None:
        if (found := whole_contents(start)) is not None:
            _fill_whole(system, found)
            return
        for part, path in start.parts.items():
            _fill_part(system, part, path)

    return fill


def started(assignments: Sequence[str]) -> Start:
    """A whole model's path and those of parts. Raises: ConfigError for a text that is neither, and for two whole models."""
    whole = [text for text in assignments if Path(text).exists() or ("=" not in text and "/" in text)]
    parts = [text for text in assignments if text not in whole]
    if neither := [text for text in parts if "=" not in text]:
        raise ConfigError(
            f"--from takes PART=PATH, as in language_model=vicuna-7b-v1.5, or the PATH of a whole model; {neither[0]!r} is "
            "neither an assignment nor a folder that exists"
        )
    if len(whole) > 1:
        raise ConfigError(f"--from takes one whole model, got {' and '.join(whole)}; take a part of a model with PART=PATH")
    return Start(whole[0] if whole else None, assigned(parts))


def assigned(assignments: Sequence[str]) -> dict[str, str]:
    """The paths of `PART=PATH` assignments by part. Raises: ConfigError for a text that is no assignment."""
    sources: dict[str, str] = {}
    for text in assignments:
        part, equals, path = text.partition("=")
        if not equals or not part or not path:
            raise ConfigError(f"--from takes PART=PATH, as in language_model=vicuna-7b-v1.5; got {text!r}")
        sources[part] = path
    return sources


def whole_contents(start: Start) -> FolderContents | None:
    """What the whole model's folder describes, none of its weights read yet; None where there is none.

    Raises: CheckpointError, ConfigError as `load_system`.
    """
    return None if start.whole is None else read_contents(start.whole, start.parts)[1]


def starting_stages(assignments: Sequence[str], recipe: Recipe) -> dict[str, Callable[[System], None]]:
    """By stage of a recipe, what fills its fresh system: a part is filled in the first stage whose system has it, a whole
    system in the first stage of all.

    Raises: ConfigError for a part that no stage has, and for one that its stage takes from earlier ones.
    """
    start, known = started(assignments), set[str]()
    if start.whole is not None:
        return {recipe.stages[0].name: _filling(start)}
    sources = start.parts
    filling: dict[str, Callable[[System], None]] = {}
    for index, stage in enumerate(recipe.stages):
        if not sources:
            break
        system = on_meta(stage.system)
        known |= (names := _parts(system))
        here = {part: sources.pop(part) for part in tuple(sources) if part in names}
        for part in here if index else ():
            inside = (name for name, _ in system.named_parameters() if name.startswith(f"{part}."))
            if not all(any(fnmatchcase(name, pattern) for pattern in stage.new) for name in inside):
                raise ConfigError(f"stage {stage.name!r} takes {part} from earlier stages; leave out --from {part}")
        if here:
            filling[stage.name] = _filling(Start(None, here))
    if sources:
        raise unknown_name("part", next(iter(sources)), known)
    return filling


def _parts(system: System) -> set[str]:
    """The names of what has a config of its own, and of the transformers of Q-Formers, which files for several models share."""
    named = dict(system.named_modules())
    shared = {f"{name}.transformer" for name, module in named.items() if isinstance(module, QFormer)}
    return {name for name, module in named.items() if name and hasattr(module, "config")} | shared


def _fill_whole(system: System, found: FolderContents) -> None:
    if type(system.config) is not type(found.system):
        raise CheckpointError(
            f"{found.where} holds a {found.system.part_name}, the stage's system is a {system.config.part_name}; take what "
            "they have in common part by part, with --from PART=PATH"
        )
    theirs = on_meta(found.system)
    for part in sorted(_parts(system) & _parts(theirs)):
        _check_same_kind(part, system.get_submodule(part), theirs.get_submodule(part), found.where)
    found.key_map.load(system, found.tensors, found.where)


def _fill_part(system: System, part: str, path: str) -> None:
    known = _parts(system)
    if part not in known:
        raise unknown_name("part", part, known)
    module = system.get_submodule(part)
    if Path(path).is_file():
        _lavis_map(system, part).load(module, WeightFiles(path), path)
        return
    folder = find_model_folder(path)
    described = describe(folder)
    saved = {} if described is None else described.config
    if described is None or not any(name in saved for name in ("model_type", "architectures", "architecture")):
        _fill_from_whole(system, part, AS_NAMED, WeightFiles(folder))
        return
    _fill_from_published(system, part, folder, described)


def _fill_from_published(system: System, part: str, folder: Path, described: Description) -> None:
    module, saved = system.get_submodule(part), described.config
    if isinstance(module, ModalityEncoder) and (published := _published_encoder(folder, saved)) is not None:
        _check_same_config(part, module.config, published.config, str(folder))
        with without_time(module):  # an image tower's file knows of none; it starts as a copy of what the file fills
            published.fill(module)
        return
    files, kind = WeightFiles(described.weights), saved.get("model_type")
    refuse_delta(files, part)
    if kind in bert.FORMAT.model_types and isinstance(system, FusionEncoder) and module is system.reader:
        read_bert(system, files, bert.read_config(saved), str(files.path))
    elif _is_whole(saved, folder):
        from weft.recipes.transformers_folder import described_system

        whole, key_map = described_system(format_of(saved, str(folder)), saved, folder)
        if part in _parts(theirs := on_meta(whole)):
            _check_same_kind(part, module, theirs.get_submodule(part), str(folder))
        _fill_from_whole(system, part, key_map, files)
    elif hasattr(module, "config"):
        key_map = _layout_of(module, kind).key_map(module.config)
        _load(module, with_experts(key_map, module.state_dict()), files)
    else:
        raise CheckpointError(f"{part} is filled from a file of LAVIS or from the folder of a whole model, {folder} is neither")


def _published_encoder(folder: Path, saved: Mapping[str, Any]) -> PublishedEncoder | None:
    """The encoder of a folder; None for that of a whole model which has no layout of its own. Raises: CheckpointError."""
    try:
        return PublishedEncoder.in_folder(folder)
    except CheckpointError:
        if _is_whole(saved, folder):
            return None
        raise


def _is_whole(saved: Mapping[str, Any], folder: Path) -> bool:
    """Whether a published folder holds a system, rather than a part alone. Raises: CheckpointError for an unknown layout."""
    return any(isinstance(example, System.Config) for example in format_of(saved, str(folder / "config.json")).tiny())


def _fill_from_whole(system: System, part: str, key_map: KeyMap, files: WeightFiles) -> None:
    """A part out of the files of a whole model, whose table leads to a system with a part of that name."""
    plan = key_map.plan(files)
    if not plan.within(f"{part}.").steps:
        held = sorted(name for name in _parts(system) if plan.within(f"{name}.").steps)
        of_those = f"of this system's parts it has {', '.join(held)}" if held else "it has none of this system's parts"
        raise CheckpointError(f"{files.path} has no part {part!r}; {of_those}")
    _load(system.get_submodule(part), key_map, files, part=f"{part}.")


def _load(module: nn.Module, key_map: KeyMap, files: WeightFiles, part: str = "") -> None:
    """What a fusion put between a language model's layers starts anew where the files know nothing of such a slot."""
    written = {name for step in key_map.plan(files).within(part).steps for name in step.outputs}
    fused = [kind for kind in SLOTS if isinstance(module, LanguageModel) and not any(f".{kind}." in name for name in written)]
    with empty_slots(module, fused):
        key_map.load(module, files, str(files.path), part=part)


def _lavis_map(system: System, part: str) -> KeyMap:
    """The table of a part out of a LAVIS file. Raises: CheckpointError for a part that such files do not hold."""
    module, owner = system.get_submodule(part), system.get_submodule(part.removesuffix(".transformer"))
    if isinstance(module, EvaClipVision):
        return blip_2_vision.lavis_map(module.config)
    if isinstance(module, QFormer):
        return qformer.projector_alone(qformer.LAVIS.projector(module.config))
    if isinstance(owner, QFormer):
        return qformer.lavis_transformer(owner.config)
    raise CheckpointError(f"{part} is a {type(module).__name__}; of files Weft reads LAVIS' EVA-CLIP tower and Q-Former")


def _check_same_kind(part: str, module: nn.Module, other: nn.Module, where: str) -> None:
    if hasattr(module, "config") and hasattr(other, "config"):
        _check_same_config(part, module.config, other.config, where)


def _check_same_config(part: str, ours: Any, theirs: Any, where: str) -> None:
    """Weights of the right shapes in a part of another arithmetic would load without a word and mean nothing."""
    if type(ours) is not type(theirs):
        raise CheckpointError(f"{where} holds a {theirs.part_name}, {part} is a {ours.part_name}")
    here, there = _arithmetic(ours), _arithmetic(theirs)
    if wrong := [name for name in there if here.get(name) != there[name]]:
        listed = ", ".join(f"{name}={there[name]!r} (here {here.get(name)!r})" for name in wrong)
        raise CheckpointError(f"{where} has weights for {listed}; change {part} with --set or take other weights")


def _arithmetic(config: Any) -> dict[str, Any]:
    """What no shape shows of a part, and of the encoders that it is made of."""
    found = {name: getattr(config, name) for name in _ARITHMETIC if hasattr(config, name)}
    for inner in fields(config):
        if isinstance(held := getattr(config, inner.name), ModalityEncoder.Config):
            found |= {f"{inner.name}.{name}": value for name, value in _arithmetic(held).items()}
    return found


def _layout_of(module: nn.Module, kind: str | None) -> CheckpointFormat:
    """The published layout of a part: of those that hold what its config describes, the one named by the `model_type`."""
    formats = checkpoint_formats().values()
    able = [layout for layout in formats if any(type(example) is type(module.config) for example in layout.tiny())]
    if able:
        return min(able, key=lambda layout: kind not in layout.model_types)
    raise CheckpointError(
        f"no published layout is known for {type(module).__name__}; train it, or take it from a Weft model folder"
    )
