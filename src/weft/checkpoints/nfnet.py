"""NFNet in the layout of timm's `dm_nfnet_f0` to `dm_nfnet_f6`, the published weights.

timm's `nfnet_f0` to `nfnet_f6` are another network (no skip gain, gamma in the convolutions, other activations) whose files do
not fit: they miss every `skipinit_gain`. timm names the network in the field `architecture` of its `config.json`, and what
differs from it in `model_args`. A config that names no `act_layer` stands for the published weights and is read as their
activation, GELU in its tanh form, although timm itself runs the exact form; one that names "gelu" means the exact form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rules import Rule, rename, squeeze
from weft.core.errors import CheckpointError
from weft.encoders.nfnet import Nfnet

BLOCK_CONVOLUTIONS = {
    "downsample.conv": "shortcut",
    "conv1": "reduce",
    "conv2": "spatial",
    "conv2b": "spatial_again",
    "conv3": "expand",
}
GATE = {"attn_last.fc1": "squeeze_excite.squeeze", "attn_last.fc2": "squeeze_excite.excite"}

ARCHITECTURES = tuple(f"dm_nfnet_f{number}" for number in range(7))
ARGUMENTS = {
    "depths": "depths",
    "channels": "widths",
    "stem_chs": "stem_width",
    "group_size": "group_width",
    "act_layer": "activation",
    "alpha": "alpha",
    "drop_path_rate": "stochastic_depth",
}


def convolution(source: str, target: str) -> tuple[Rule, Rule]:
    """A convolution's weight and bias, and its gain, which the file keeps in the shape of a kernel."""
    return rename(source, target), squeeze(f"{source}.gain", f"{target}.gain", axes=(1, 2, 3))


def block_rules(block: str) -> tuple[Rule, ...]:
    """One residual block; the file writes squeeze-and-excite as convolutions of a single position."""
    rules = [rename(f"{block}.skipinit_gain", f"{block}.skip_gain")]
    for theirs, ours in BLOCK_CONVOLUTIONS.items():
        rules += convolution(f"{block}.{theirs}", f"{block}.{ours}")
    for theirs, ours in GATE.items():
        rules.append(rename(f"{block}.{theirs}.bias", f"{block}.{ours}.bias"))
        rules.append(squeeze(f"{block}.{theirs}.weight", f"{block}.{ours}.weight", axes=(2, 3)))
    return tuple(rules)


NFNET_KEYS = KeyMap(
    (
        *(rule for place in range(4) for rule in convolution(f"stem.conv{place + 1}", f"stem.{place}")),
        *block_rules("stages.{s}.{b}"),
        *convolution("final_conv", "final"),
    ),
    drop={"head.fc": "the classifier of ImageNet's classes, an encoder serves features"},
)


def published(number: int) -> Nfnet.Config:
    """F0 to F6 at the resolution that it was trained at."""
    return next(size for name, size in Nfnet.Config.sizes().items() if name.startswith(f"f{number}-"))


def read_config(saved: Mapping[str, Any]) -> Nfnet.Config:
    """The encoder's config from a timm config; what the file leaves out is as published.

    Raises: CheckpointError for arguments of the network that Weft's has no place for.
    """
    name = saved["architecture"]
    size = published(ARCHITECTURES.index(name))
    side = (saved.get("pretrained_cfg") or {}).get("input_size", size.unit_shape)
    if len(side) != 3 or side[0] != 3 or side[1] != side[2]:
        raise CheckpointError(f"{name}: an NFNet takes square pictures of 3 channels, the config's input_size is {side}")
    given = dict(saved.get("model_args") or {})
    final_width = given.pop("num_features", None)
    if unknown := sorted(set(given) - set(ARGUMENTS)):
        raise CheckpointError(f"{name}: Weft's Nfnet has no place for model_args {', '.join(unknown)}")
    fields: dict[str, Any] = {
        ARGUMENTS[key]: tuple(value) if isinstance(value, list) else value for key, value in given.items()
    }
    config = dataclasses.replace(size, image_size=side[1], **fields)
    if final_width not in (None, config.pooled_width):
        raise CheckpointError(f"{name}: the last grid has {config.pooled_width} channels, model_args say {final_width}")
    return config


def write_config(config: Nfnet.Config) -> dict[str, Any]:
    """The timm config: the published size of the same depths, else F0, and what differs from it."""
    sizes = [published(number) for number in range(len(ARCHITECTURES))]
    number = next((n for n, size in enumerate(sizes) if size.depths == config.depths), 0)
    changes: dict[str, Any] = {
        theirs: getattr(config, ours)
        for theirs, ours in ARGUMENTS.items()
        if getattr(config, ours) != getattr(sizes[number], ours)
    }
    if "channels" in changes:
        changes["num_features"] = config.pooled_width
    return {
        "architecture": ARCHITECTURES[number],
        "num_classes": 0,
        "num_features": config.pooled_width,
        "pretrained_cfg": {"input_size": list(config.unit_shape)},
        "model_args": changes,
    }


def tiny_encoders() -> tuple[Nfnet.Config, ...]:
    """A small one, and one that changes every field of its own."""
    tiny = Nfnet.Config.tiny()
    return (tiny, dataclasses.replace(tiny, activation="silu", alpha=0.3, stochastic_depth=0.0, depths=(1, 2, 1, 1)))


NFNET = CheckpointFormat(
    name="nfnet",
    model_types=ARCHITECTURES,
    key_map=lambda config: NFNET_KEYS,
    read_config=read_config,
    write_config=write_config,
    tiny=tiny_encoders,
)
