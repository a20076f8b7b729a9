"""ResNet in the layout of the `transformers` library; also read is the file of an image classifier, whose head is dropped."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.key_map import KeyMap
from weft.core.errors import CheckpointError
from weft.encoders.resnet import Resnet

CONVOLUTIONS = {
    "embedder.embedder": "stem",
    "encoder.stages.{s}.layers.{i}.layer.0": "stages.{s}.{i}.narrow",
    "encoder.stages.{s}.layers.{i}.layer.1": "stages.{s}.{i}.look",
    "encoder.stages.{s}.layers.{i}.layer.2": "stages.{s}.{i}.widen",
    "encoder.stages.{s}.layers.{i}.shortcut": "stages.{s}.{i}.shortcut",
}
TRUNK = KeyMap(
    rename={
        f"{theirs}.{their_part}": f"{ours}.{our_part}"
        for theirs, ours in CONVOLUTIONS.items()
        for their_part, our_part in (("convolution", "convolution"), ("normalization", "norm"))
    },
    drop={"classifier.*": "the head of an image classifier, the encoder serves features"},
    spellings=[("resnet.", "")],
)

EXPECTED = {"num_channels": 3, "layer_type": "bottleneck", "hidden_act": "relu", "downsample_in_first_stage": False}


def read_config(saved: Mapping[str, Any]) -> Resnet.Config:
    """The encoder's config from a `resnet` config, which does not say what picture size was trained on.

    Raises: CheckpointError for a network that Weft does not have.
    """
    if wrong := {name: saved[name] for name, value in EXPECTED.items() if saved.get(name, value) != value}:
        raise CheckpointError(f"Weft's ResNet has {EXPECTED}, the config says {wrong}")
    default = Resnet.Config()
    return Resnet.Config(
        depths=tuple(saved.get("depths", default.depths)),
        stem_width=saved.get("embedding_size", default.stem_width),
        widths=tuple(saved.get("hidden_sizes", default.widths)),
        stride_placement="1x1" if saved.get("downsample_in_bottleneck", False) else "3x3",
    )


def write_config(config: Resnet.Config) -> dict[str, Any]:
    """The `resnet` config of an encoder.

    Raises: CheckpointError for norms that the layout cannot hold.
    """
    if config.norm_eps != Resnet.Config().norm_eps:
        raise CheckpointError(f"the resnet layout has norms with eps 1e-5, this encoder has {config.norm_eps}")
    return {
        "architectures": ["ResNetModel"],
        "model_type": "resnet",
        **EXPECTED,
        "depths": list(config.depths),
        "embedding_size": config.stem_width,
        "hidden_sizes": list(config.widths),
        "downsample_in_bottleneck": config.stride_placement == "1x1",
    }


def tiny() -> tuple[Resnet.Config, ...]:
    """A small network at the published picture size, and one that halves the grid as the original paper does."""
    small = dataclasses.replace(Resnet.Config.tiny(), image_size=Resnet.Config().image_size)
    return (small, dataclasses.replace(small, depths=(2, 1, 1), widths=(16, 24, 32), stride_placement="1x1"))


RESNET = CheckpointFormat(
    name="resnet",
    model_types=("resnet",),
    key_map=lambda config: TRUNK,
    read_config=read_config,
    write_config=write_config,
    tiny=tiny,
)
