"""What the towers of CLIP and SigLIP have in common in the layout of the `transformers` library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weft.checkpoints.activation_names import from_transformers, to_transformers
from weft.checkpoints.key_map import KeyMap
from weft.encoders.clip import ClipText, ClipVision
from weft.encoders.siglip import SiglipText, SiglipVision

TowerConfig = ClipVision.Config | ClipText.Config | SiglipVision.Config | SiglipText.Config

BLOCKS = {
    "encoder.layers.{i}.layer_norm1": "blocks.{i}.attention_norm",
    "encoder.layers.{i}.self_attn.q_proj": "blocks.{i}.attention.query",
    "encoder.layers.{i}.self_attn.k_proj": "blocks.{i}.attention.key",
    "encoder.layers.{i}.self_attn.v_proj": "blocks.{i}.attention.value",
    "encoder.layers.{i}.self_attn.out_proj": "blocks.{i}.attention.output",
    "encoder.layers.{i}.layer_norm2": "blocks.{i}.feed_forward_norm",
    "encoder.layers.{i}.mlp.fc1": "blocks.{i}.feed_forward.up",
    "encoder.layers.{i}.mlp.fc2": "blocks.{i}.feed_forward.down",
}
BUFFERS = {"embeddings.position_ids": "a buffer that counts positions, not needed"}


def tower_alone(tower: KeyMap, *others: str) -> KeyMap:
    """A tower's map that also reads the file of the whole model and drops what the `others` patterns name."""
    return KeyMap.join(tower, KeyMap(drop=dict.fromkeys(others, "belongs to the whole dual encoder, one tower is loaded")))


def block_sizes(config: TowerConfig) -> dict[str, Any]:
    """The fields that both towers share, in `transformers`' names."""
    return {
        "hidden_size": config.width,
        "intermediate_size": config.feed_forward_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "hidden_act": to_transformers(config.activation),
        "layer_norm_eps": config.norm_eps,
    }


def read_block_sizes(saved: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """The fields that both towers share; what a file leaves out has the published default."""
    activation = saved.get("hidden_act")
    return {
        "width": saved.get("hidden_size", default.width),
        "feed_forward_width": saved.get("intermediate_size", default.feed_forward_width),
        "num_layers": saved.get("num_hidden_layers", default.num_layers),
        "num_heads": saved.get("num_attention_heads", default.num_heads),
        "activation": default.activation if activation is None else from_transformers(activation),
        "norm_eps": saved.get("layer_norm_eps", default.norm_eps),
    }
