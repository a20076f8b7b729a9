"""Published weights for the parts of a system that is about to be trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import nn

from weft.checkpoints import bert, blip_2_vision, qformer
from weft.checkpoints.blip_2_pretraining import read_bert
from weft.checkpoints.checkpoint_format import CheckpointFormat, checkpoint_formats
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.visual_expert import with_experts
from weft.checkpoints.weight_files import WeightFiles
from weft.core.errors import CheckpointError, ConfigError, unknown_name
from weft.core.interfaces import ModalityEncoder, System
from weft.encoders.eva_clip import EvaClipVision
from weft.layers.temporal_attention import without_time
from weft.projectors.qformer import QFormer
from weft.recipes.encoder_loading import PublishedEncoder
from weft.recipes.model_folders import describe, find_model_folder
from weft.systems.accounting import on_meta
from weft.systems.fusion_encoder import FusionEncoder
from weft.training.model_folder import load_weights
from weft.training.stage import Recipe

_ARITHMETIC = ("num_heads", "activation", "norm_eps", "pre_norm", "stride_placement", "block", "gated")
"""Settings of an encoder that no shape shows."""


def starting_weights(assignments: Sequence[str]) -> Callable[[System], None] | None:
    """What fills a fresh system from `PART=PATH` assignments; None where there are none.

    A part is named by the prefix of its parameters (`language_model`, `streams.image.encoder`). A path is a published folder,
    a hub name, or a Weft model folder that has the same part. Every parameter of the part is filled;
    the Q-Former of BLIP-2's first stage may start from a BERT, which fills all that it has itself. A path may also be a LAVIS
    file of BLIP-2 or InstructBLIP, for an image tower, a Q-Former or its `transformer`.

    Raises: ConfigError for a text that is no assignment; later, for a part that the system does not have.
    """
    return _filling(assigned(assignments)) if assignments else None


def _filling(sources: Mapping[str, str]) -> Callable[[System], None]:
    def fill(system: System) -> None:
        for part, path in sources.items():
            _fill_part(system, part, path)

    return fill


def assigned(assignments: Sequence[str]) -> dict[str, str]:
    """The paths of `PART=PATH` assignments by part. Raises: ConfigError for a text that is no assignment."""
    sources: dict[str, str] = {}
    for text in assignments:
        part, equals, path = text.partition("=")
        if not equals or not part or not path:
            raise ConfigError(f"--from takes PART=PATH, as in language_model=vicuna-7b-v1.5; got {text!r}")
        sources[part] = path
    return sources


def starting_stages(assignments: Sequence[str], recipe: Recipe) -> dict[str, Callable[[System], None]]:
    """By stage of a recipe, what fills its fresh system: a part is filled in the first stage whose system has it.

    Raises: ConfigError for a part that no stage has, and for one that its stage takes from earlier ones.
    """
    sources, known = assigned(assignments), set[str]()
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
            filling[stage.name] = _filling(here)
    if sources:
        raise unknown_name("part", next(iter(sources)), known)
    return filling


def _parts(system: System) -> set[str]:
    """The names of what has a config of its own, and of the transformers of Q-Formers, which files for several models share."""
    named = dict(system.named_modules())
    shared = {f"{name}.transformer" for name, module in named.items() if isinstance(module, QFormer)}
    return {name for name, module in named.items() if name and hasattr(module, "config")} | shared


def _fill_part(system: System, part: str, path: str) -> None:
    known = _parts(system)
    if part not in known:
        raise unknown_name("part", part, known)
    module = system.get_submodule(part)
    if Path(path).is_file():
        _lavis_map(system, part).load(module, WeightFiles(path), path)
        return
    folder = find_model_folder(path)
    files = WeightFiles(folder)
    described = describe(folder)
    saved = {} if described is None else described.config
    kind = saved.get("model_type") or saved.get("architecture")  # the name that `timm` writes
    if kind is None:
        load_weights(module, _under(files, f"{part}.", folder), str(folder))
        return
    if isinstance(module, ModalityEncoder):
        published = PublishedEncoder.in_folder(folder)
        _check_same_kind(part, module, published)
        with without_time(module):  # an image tower's file knows of none; it starts as a copy of what the file fills
            published.fill(module)
        return
    if kind in bert.FORMAT.model_types and isinstance(system, FusionEncoder) and module is system.reader:
        read_bert(system, files, bert.read_config(saved), str(files.path))
        return
    if not hasattr(module, "config"):
        raise CheckpointError(f"{part} is filled from a file of LAVIS or from a Weft model folder, {folder} is neither")
    layout = _layout_of(module, kind)
    key_map = layout.key_map(module.config)
    with_experts(key_map, module.state_dict()).load(module, files, str(files.path))


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


def _check_same_kind(part: str, module: ModalityEncoder, published: PublishedEncoder) -> None:
    """Weights of the right shapes in a part of another arithmetic would load without a word and mean nothing."""
    ours, theirs = module.config, published.config
    if type(ours) is not type(theirs):
        raise CheckpointError(f"{published.folder} holds a {theirs.part_name}, {part} is a {ours.part_name}")
    here, there = _arithmetic(ours), _arithmetic(theirs)
    if wrong := [name for name in there if here.get(name) != there[name]]:
        listed = ", ".join(f"{name}={there[name]!r} (here {here.get(name)!r})" for name in wrong)
        raise CheckpointError(f"{published.folder} has weights for {listed}; change {part} with --set or take other weights")


def _arithmetic(config: Any) -> dict[str, Any]:
    """What no shape shows of an encoder, and of those that it is made of."""
    found = {name: getattr(config, name) for name in _ARITHMETIC if hasattr(config, name)}
    for inner in fields(config):
        if isinstance(held := getattr(config, inner.name), ModalityEncoder.Config):
            found |= {f"{inner.name}.{name}": value for name, value in _arithmetic(held).items()}
    return found


def _under(files: Mapping[str, Any], prefix: str, folder: Path) -> dict[str, Any]:
    found = {name.removeprefix(prefix): files[name] for name in files if name.startswith(prefix)}
    if not found:
        raise CheckpointError(f"{folder} has no part {prefix.rstrip('.')!r}")
    return found


def _layout_of(module: nn.Module, kind: str) -> CheckpointFormat:
    """The published layout of a part: of those that hold what its config describes, the one named by the `model_type`."""
    formats = checkpoint_formats().values()
    able = [layout for layout in formats if any(type(example) is type(module.config) for example in layout.tiny())]
    if able:
        return min(able, key=lambda layout: kind not in layout.model_types)
    raise CheckpointError(
        f"no published layout is known for {type(module).__name__}; train it, or take it from a Weft model folder"
    )
