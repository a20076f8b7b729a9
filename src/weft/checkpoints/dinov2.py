"""DINOv2 in the layout of the `transformers` library, with and without registers.

Files are written in the spelling of the hub, which versions 4 and 5 both read. Read are also the names that version 5 gives its
modules, and the file of an image classifier, whose head is dropped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from weft.checkpoints.activation_names import from_transformers, to_transformers
from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rules import Rule, read_only, rename, split, squeeze
from weft.core.errors import CheckpointError
from weft.encoders.dinov2 import Dinov2

PLAIN = "dinov2"
REGISTERS = "dinov2_with_registers"

TRUNK = KeyMap(
    [
        squeeze("embeddings.cls_token", "class_embedding", axes=(0, 1)),
        squeeze("embeddings.position_embeddings", "position_embedding", axes=(0,)),
    ],
    rename={
        "embeddings.patch_embeddings.projection": "patch_embedding.projection",
        "encoder.layer.{i}.norm1": "blocks.{i}.attention_norm",
        "encoder.layer.{i}.attention.attention.query": "blocks.{i}.attention.query",
        "encoder.layer.{i}.attention.attention.key": "blocks.{i}.attention.key",
        "encoder.layer.{i}.attention.attention.value": "blocks.{i}.attention.value",
        "encoder.layer.{i}.attention.output.dense": "blocks.{i}.attention.output",
        "encoder.layer.{i}.layer_scale1.lambda1": "blocks.{i}.attention_scale.weight",
        "encoder.layer.{i}.norm2": "blocks.{i}.feed_forward_norm",
        "encoder.layer.{i}.layer_scale2.lambda1": "blocks.{i}.feed_forward_scale.weight",
        "layernorm": "final_norm",
    },
    drop={"classifier.*": "the head of an image classifier, the tower serves features"},
    spellings=[("dinov2.", ""), ("dinov2_with_registers.", "")],
)

VERSION_5 = KeyMap(
    read_only(
        rename("encoder.layer.{i}.attention.q_proj", "blocks.{i}.attention.query"),
        rename("encoder.layer.{i}.attention.k_proj", "blocks.{i}.attention.key"),
        rename("encoder.layer.{i}.attention.v_proj", "blocks.{i}.attention.value"),
        rename("encoder.layer.{i}.attention.o_proj", "blocks.{i}.attention.output"),
    )
)

FEED_FORWARD = KeyMap(
    rename={
        "encoder.layer.{i}.mlp.fc1": "blocks.{i}.feed_forward.up",
        "encoder.layer.{i}.mlp.fc2": "blocks.{i}.feed_forward.down",
    }
)
GATED_FEED_FORWARD = KeyMap(
    [
        split("encoder.layer.{i}.mlp.weights_in", [f"blocks.{{i}}.feed_forward.{name}" for name in ("gate", "up")]),
        rename("encoder.layer.{i}.mlp.weights_out", "blocks.{i}.feed_forward.down"),
        *read_only(
            rename("encoder.layer.{i}.mlp.gate_proj", "blocks.{i}.feed_forward.gate"),
            rename("encoder.layer.{i}.mlp.up_proj", "blocks.{i}.feed_forward.up"),
            rename("encoder.layer.{i}.mlp.down_proj", "blocks.{i}.feed_forward.down"),
        ),
    ]
)


def key_map(config: Dinov2.Config) -> KeyMap:
    """The map of a tower; without a mask token in the config, the file's is dropped."""
    tokens: list[Rule] = []
    drop = {}
    if config.num_registers:
        tokens.append(squeeze("embeddings.register_tokens", "registers", axes=(0,)))
    if config.mask_token:
        tokens.append(squeeze("embeddings.mask_token", "mask_token", axes=(0,)))
    else:
        drop["embeddings.mask_token"] = "it stands for a hidden patch in pre-training, the config leaves it out"
    return KeyMap.join(TRUNK, VERSION_5, GATED_FEED_FORWARD if config.gated else FEED_FORWARD, KeyMap(tokens, drop=drop))


def read_config(saved: Mapping[str, Any]) -> Dinov2.Config:
    """The tower's config from a `dinov2` or `dinov2_with_registers` config, its positions interpolated as the library does.

    Raises: CheckpointError for a tower that Weft does not have.
    """
    registers = saved.get("model_type") == REGISTERS
    default = Dinov2.Config()
    if saved.get("num_channels", 3) != 3:
        raise CheckpointError(f"a DINOv2 tower takes 3 channels, the config says {saved['num_channels']}")
    if not saved.get("qkv_bias", True):
        raise CheckpointError("Weft's Dinov2 has biases on query, key and value, the config says qkv_bias=False")
    image_size = _side(saved, "image_size", 224)
    activation = saved.get("hidden_act")
    return Dinov2.Config(
        image_size=image_size,
        position_image_size=image_size,
        patch_size=_side(saved, "patch_size", 16 if registers else 14),
        width=saved.get("hidden_size", default.width),
        num_layers=saved.get("num_hidden_layers", default.num_layers),
        num_heads=saved.get("num_attention_heads", default.num_heads),
        feed_forward_ratio=saved.get("mlp_ratio", default.feed_forward_ratio),
        gated=saved.get("use_swiglu_ffn", False),
        activation=default.activation if activation is None else from_transformers(activation),
        num_registers=saved.get("num_register_tokens", 4) if registers else 0,
        position_interpolation="antialiased" if registers else "plain",
        mask_token=registers or saved.get("use_mask_token", True),
        initial_scale=saved.get("layerscale_value", 1.0),
        norm_eps=saved.get("layer_norm_eps", default.norm_eps),
    )


def _side(saved: Mapping[str, Any], name: str, default: int) -> int:
    """A size that the file may give as one number or for both axes."""
    value = saved.get(name, default)
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1:
        raise CheckpointError(f"Weft's Dinov2 takes squares, the config's {name} is {value}")
    return int(sides.pop())


def write_config(config: Dinov2.Config) -> dict[str, Any]:
    """The `dinov2` or `dinov2_with_registers` config of a tower; its `image_size` is the one of the learned positions.

    Raises: CheckpointError where the library would interpolate the positions in another way, or miss the mask token.
    """
    registers = config.num_registers > 0
    theirs = "antialiased" if registers else "plain"
    if config.image_size != config.position_image_size and config.position_interpolation != theirs:
        raise CheckpointError(
            f"the {REGISTERS if registers else PLAIN} layout interpolates positions {theirs!r}, this tower "
            f"{config.position_interpolation!r}; set position_interpolation={theirs!r} to write it"
        )
    if registers and not config.mask_token:
        raise CheckpointError(f"the {REGISTERS} layout holds a mask token, this tower has none; set mask_token=True")
    shape = {
        "image_size": config.position_image_size,
        "patch_size": config.patch_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "mlp_ratio": config.feed_forward_ratio,
        "use_swiglu_ffn": config.gated,
        "hidden_act": to_transformers(config.activation),
        "layerscale_value": config.initial_scale,
        "layer_norm_eps": config.norm_eps,
    }
    if registers:
        kind = {"architectures": ["Dinov2WithRegistersModel"], "model_type": REGISTERS}
        return {**kind, **shape, "num_register_tokens": config.num_registers}
    return {"architectures": ["Dinov2Model"], "model_type": PLAIN, **shape, "use_mask_token": config.mask_token}


def tiny_plain() -> tuple[Dinov2.Config, ...]:
    """A small tower, and one with a gated feed-forward and without the mask token."""
    native = dataclasses.replace(Dinov2.Config.tiny(), position_image_size=32, num_registers=0, position_interpolation="plain")
    return (native, dataclasses.replace(native, gated=True, mask_token=False, feed_forward_ratio=3))


def tiny_registers() -> tuple[Dinov2.Config, ...]:
    """A small tower with registers, and one that is gated."""
    native = dataclasses.replace(Dinov2.Config.tiny(), position_image_size=32)
    return (native, dataclasses.replace(native, gated=True))


DINOV2 = CheckpointFormat(
    name="dinov2",
    model_types=(PLAIN,),
    key_map=key_map,
    read_config=read_config,
    write_config=write_config,
    tiny=tiny_plain,
)

DINOV2_WITH_REGISTERS = CheckpointFormat(
    name="dinov2_with_registers",
    model_types=(REGISTERS,),
    key_map=key_map,
    read_config=read_config,
    write_config=write_config,
    tiny=tiny_registers,
)
