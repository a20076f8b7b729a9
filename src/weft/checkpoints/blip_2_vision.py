"""The vision tower of BLIP-2, InstructBLIP and MiniGPT-4: EVA-CLIP-g without its last block, in two layouts.

LAVIS, their own code, has `visual_encoder.` and beside it `ln_vision`; the tower's own file has no prefix. EVA-CLIP-g's file
fits too: what lies behind the 39th block is dropped. `transformers` fuses the biases of query, key and value and keeps the
key's at zero: it changes no attention weight, so it is dropped on reading and written as zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from weft.checkpoints.activation_names import from_transformers
from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.eva_clip import trunk_map
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.position_table import position_table
from weft.checkpoints.rules import Rule, split, squeeze
from weft.core.errors import CheckpointError
from weft.encoders.eva_clip import EvaClipVision
from weft.layers.patch_embedding import patches_per_side

LAVIS_OTHERS = (
    "Qformer.*", "query_tokens", "vision_proj.*", "text_proj.*", "itm_head.*", "temp", "opt_*", "t5_*", "llm_*", "llama_*",
)  # fmt: skip
TRANSFORMERS_OTHERS = ("qformer.*", "query_tokens", "language_projection.*", "language_model.*")


def fused_bias(source: str, query: str, value: str) -> Rule:
    """One bias [query; key; value] becomes those of query and value; the key's is written as zero."""

    def forward(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        (whole,) = tensors
        if whole.dim() != 1 or len(whole) % 3:
            raise ValueError(f"{tuple(whole.shape)} is not the bias of query, key and value")
        first, _, last = whole.chunk(3)
        return first, last

    def backward(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        first, last = tensors
        return (torch.cat((first, torch.zeros_like(first), last)),)

    return Rule((source,), (query, value), forward, backward)


def lavis_map(config: EvaClipVision.Config) -> KeyMap:
    """The tower in LAVIS's layout, from its own file or from that of a whole model."""
    return KeyMap.join(_part_of_blip_2(lavis_tower(config), LAVIS_OTHERS), spellings=[("", "visual_encoder.")])


def lavis_tower(config: EvaClipVision.Config) -> KeyMap:
    """The tower as it stands within LAVIS's file of a whole model."""
    norm = "ln_vision.*"
    if config.feature_norm_eps is None:
        ends = KeyMap(drop={norm: "the config has no norm of the features"})
    else:
        ends = KeyMap(rename={"ln_vision": "feature_norm"})
    return KeyMap.join(trunk_map(config).under("visual_encoder."), ends)


def transformers_map(config: EvaClipVision.Config) -> KeyMap:
    """The tower in `transformers`' layout, from its own file or from that of a whole model."""
    return _part_of_blip_2(transformers_tower(config), TRANSFORMERS_OTHERS)


def transformers_tower(config: EvaClipVision.Config) -> KeyMap:
    """The tower in `transformers`' layout, nothing beside it."""
    theirs, ours = "encoder.layers.{i}.", "blocks.{i}."
    inputs = [f"{ours}attention.{name}" for name in ("query", "key", "value")]
    return KeyMap(
        [
            squeeze("embeddings.class_embedding", "class_embedding", axes=(0, 1)),
            position_table(
                "embeddings.position_embedding",
                "position_embedding",
                patches_per_side(config.image_size, config.patch_size),
            ),
            split(f"{theirs}self_attn.qkv.weight", [f"{name}.weight" for name in inputs]),
            fused_bias(f"{theirs}self_attn.qkv.bias", f"{inputs[0]}.bias", f"{inputs[2]}.bias"),
        ],
        rename={
            "embeddings.patch_embedding": "patch_embedding.projection",
            f"{theirs}layer_norm1": f"{ours}attention_norm",
            f"{theirs}self_attn.projection": f"{ours}attention.output",
            f"{theirs}layer_norm2": f"{ours}feed_forward_norm",
            f"{theirs}mlp.fc1": f"{ours}feed_forward.up",
            f"{theirs}mlp.fc2": f"{ours}feed_forward.down",
            "post_layernorm": "feature_norm",
        },
        spellings=[("model.", ""), ("vision_model.", "")],
    )


def _part_of_blip_2(tower: KeyMap, others: Sequence[str]) -> KeyMap:
    reason = "belongs to the whole model, the vision tower alone is loaded"
    return KeyMap.join(tower, KeyMap(drop=dict.fromkeys(others, reason)))


def _sizes(image_size: int, patch_size: int, width: int, num_layers: int, num_heads: int) -> dict[str, Any]:
    """What both layouts say, and what neither needs to: all tokens leave the last block for a norm of their own."""
    return {
        "image_size": image_size,
        "patch_size": patch_size,
        "width": width,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "embedding_width": None,
        "feature_layer": -1,
        "keep_class_token": True,
    }


def _check_plain(config: EvaClipVision.Config, layout: str) -> None:
    """Raises: CheckpointError for a tower that neither layout holds."""
    if config.block != "pre_norm" or config.rotary_side is not None or config.embedding_width is not None:
        raise CheckpointError(
            f"the {layout} layout holds towers of pre-norm blocks without rotary positions and head, the config has "
            f"block={config.block!r}, rotary_side={config.rotary_side}, embedding_width={config.embedding_width}"
        )


def read_lavis(saved: Mapping[str, Any]) -> EvaClipVision.Config:
    """The tower of what LAVIS's constructor takes; `ln_vision` has PyTorch's eps."""
    width = saved.get("embed_dim", 1408)
    sizes = _sizes(
        saved.get("img_size", 224), saved.get("patch_size", 14), width, saved.get("depth", 39), saved.get("num_heads", 16)
    )
    return EvaClipVision.Config(**sizes, feed_forward_width=int(width * saved.get("mlp_ratio", 4.3637)), feature_norm_eps=1e-5)


def write_lavis(config: EvaClipVision.Config) -> dict[str, Any]:
    """What LAVIS's constructor takes, with a `model_type` besides.

    Raises: CheckpointError for a tower that the layout cannot hold.
    """
    _check_plain(config, "LAVIS")
    if (config.norm_eps, config.feature_norm_eps) != (1e-6, 1e-5):
        raise CheckpointError("LAVIS has norm_eps=1e-6 and feature_norm_eps=1e-5; set both")
    return {
        "model_type": "lavis_eva_vit",
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "depth": config.num_layers,
        "num_heads": config.num_heads,
        "mlp_ratio": (config.feed_forward_width + 0.5) / config.width,  # read as int(width * ratio)
    }


def read_transformers(saved: Mapping[str, Any]) -> EvaClipVision.Config:
    """The tower of a `blip_2_vision_model` or `instructblip_vision_model` config.

    Raises: CheckpointError for another activation than GELU, or input layers without biases.
    """
    if from_transformers(saved.get("hidden_act", "gelu")) != "gelu" or not saved.get("qkv_bias", True):
        raise CheckpointError("BLIP-2's vision tower has GELU and biases on queries and values; this config says otherwise")
    sizes = _sizes(
        saved.get("image_size", 224),
        saved.get("patch_size", 14),
        saved.get("hidden_size", 1408),
        saved.get("num_hidden_layers", 39),
        saved.get("num_attention_heads", 16),
    )
    eps = saved.get("layer_norm_eps", 1e-6)
    return EvaClipVision.Config(
        **sizes, feed_forward_width=saved.get("intermediate_size", 6144), norm_eps=eps, feature_norm_eps=eps
    )


def write_transformers(config: EvaClipVision.Config) -> dict[str, Any]:
    """The `blip_2_vision_model` config of a tower.

    Raises: CheckpointError for a tower that the layout cannot hold.
    """
    _check_plain(config, "transformers")
    if config.feature_norm_eps != config.norm_eps:
        raise CheckpointError(
            f"transformers has one eps for all norms of BLIP-2's tower, the config has {config.norm_eps} and "
            f"{config.feature_norm_eps} for the features; if you accept the difference, set feature_norm_eps={config.norm_eps} "
            f"(weft convert --set streams.image.encoder.feature_norm_eps={config.norm_eps})"
        )
    return {
        "architectures": ["Blip2VisionModel"],
        "model_type": "blip_2_vision_model",
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.feed_forward_width,
        "hidden_act": "gelu",
        "layer_norm_eps": config.norm_eps,
        "qkv_bias": True,
    }


def tiny_tower(feature_norm_eps: float) -> EvaClipVision.Config:
    """A small tower of features."""
    return EvaClipVision.Config(**_sizes(32, 8, 64, 2, 2), feed_forward_width=96, feature_norm_eps=feature_norm_eps)


LAVIS_EVA_VIT = CheckpointFormat(
    name="lavis_eva_vit",
    model_types=("lavis_eva_vit",),
    key_map=lavis_map,
    read_config=read_lavis,
    write_config=write_lavis,
    tiny=lambda: (tiny_tower(1e-5),),
)

BLIP_2_VISION = CheckpointFormat(
    name="blip_2_vision",
    model_types=("blip_2_vision_model", "instructblip_vision_model"),
    key_map=transformers_map,
    read_config=read_transformers,
    write_config=write_transformers,
    tiny=lambda: (tiny_tower(1e-6),),
)
