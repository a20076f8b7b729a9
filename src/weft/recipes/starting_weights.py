"""Published weights for the parts of a system that is about to be trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from weft.checkpoints.checkpoint_format import CheckpointFormat, checkpoint_formats
from weft.checkpoints.visual_expert import with_experts
from weft.checkpoints.weight_files import WeightFiles
from weft.core.errors import CheckpointError, ConfigError, unknown_name
from weft.core.interfaces import ModalityEncoder, System
from weft.recipes.encoder_loading import PublishedEncoder
from weft.recipes.loading import find_model_folder, read_json
from weft.training.model_folder import load_weights

_ARITHMETIC = ("num_heads", "activation", "norm_eps", "pre_norm", "stride_placement", "block", "gated")
"""Settings of an encoder that no shape shows."""


def starting_weights(assignments: Sequence[str]) -> Callable[[System], None] | None:
    """What fills a fresh system from `PART=PATH` assignments; None where there are none.

    A part is named by the prefix of its parameters (`language_model`, `streams.image.encoder`). A path is a folder in
    `transformers` layout, a hub name, or a Weft model folder that has the same part. Every parameter of the part is filled.

    Raises: ConfigError for a text that is no assignment; later, for a part that the system does not have.
    """
    if not assignments:
        return None
    sources: dict[str, str] = {}
    for text in assignments:
        part, equals, path = text.partition("=")
        if not equals or not part or not path:
            raise ConfigError(f"--from takes PART=PATH, as in language_model=vicuna-7b-v1.5; got {text!r}")
        sources[part] = path

    def fill(system: System) -> None:
        for part, path in sources.items():
            _fill_part(system, part, path)

    return fill


def _fill_part(system: System, part: str, path: str) -> None:
    known = {name for name, module in system.named_modules() if name and hasattr(module, "config")}
    if part not in known:
        raise unknown_name("part", part, known)
    module = system.get_submodule(part)
    folder = find_model_folder(path)
    files = WeightFiles(folder)
    kind = read_json(folder / "config.json").get("model_type")
    if kind is None:
        load_weights(module, _under(files, f"{part}.", folder), str(folder))
        return
    if isinstance(module, ModalityEncoder):
        published = PublishedEncoder.in_folder(folder)
        _check_same_kind(part, module, published)
        published.fill(module)
        return
    layout = _layout_of(module, kind)
    key_map = layout.key_map(module.config)
    with_experts(key_map, module.state_dict()).load(module, files, str(files.path))


def _check_same_kind(part: str, module: ModalityEncoder, published: PublishedEncoder) -> None:
    """Weights of the right shapes in a part of another arithmetic would load without a word and mean nothing."""
    ours, theirs = module.config, published.config
    if type(ours) is not type(theirs):
        raise CheckpointError(f"{published.folder} holds a {theirs.part_name}, {part} is a {ours.part_name}")
    wrong = [name for name in _ARITHMETIC if getattr(ours, name, None) != getattr(theirs, name, None)]
    if wrong:
        listed = ", ".join(f"{name}={getattr(theirs, name)!r} (here {getattr(ours, name)!r})" for name in wrong)
        raise CheckpointError(f"{published.folder} has weights for {listed}; change {part} with --set or take other weights")


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
