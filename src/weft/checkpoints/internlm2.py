"""InternLM2 in its own layout: query, key and value of each group of heads lie side by side in one matrix.

Source: the `InternLM2ForCausalLM` files that InternLM2, InternVL and Mono-InternVL publish; arXiv:2403.17297.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rotary_config import read_rotary, write_rotary
from weft.checkpoints.rules import Rule
from weft.core.errors import CheckpointError
from weft.language_models.decoder import Decoder
from weft.layers.rotary import DynamicScaling

_LAYER = {
    "attention.wo": "attention.output",
    "attention_norm": "attention_norm",
    "ffn_norm": "feed_forward_norm",
    "feed_forward.w1": "feed_forward.gate",
    "feed_forward.w3": "feed_forward.up",
    "feed_forward.w2": "feed_forward.down",
}
# What the published configuration class takes for a field that its config.json leaves out.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 103_168, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "bias": True, "hidden_act": "silu",
}  # fmt: skip


def key_map(config: Decoder.Config) -> KeyMap:
    """The table of a decoder, whose heads say how the fused matrix is cut."""
    attention = "blocks.{i}.attention."
    parts = (attention + "query", attention + "key", attention + "value")
    head_width = config.head_width or config.width // config.num_heads
    return KeyMap(
        [grouped("model.layers.{i}.attention.wqkv", parts, config.num_heads, config.num_key_value_heads, head_width)],
        rename={
            "model.tok_embeddings": "embedding",
            **{f"model.layers.{{i}}.{theirs}": f"blocks.{{i}}.{ours}" for theirs, ours in _LAYER.items()},
            "model.norm": "final_norm",
            "output": "output",
        },
        drop={"model.layers.{i}.attention.rotary_emb.inv_freq": "buffer, rebuilt from the config"},
    )


def grouped(source: str, targets: tuple[str, str, str], num_heads: int, num_groups: int, head_width: int) -> Rule:
    """One matrix whose rows are, group by group, the queries of the group's heads, its key and its value."""
    queries = num_heads // num_groups

    def forward(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        (whole,) = tensors
        rows = whole.reshape(num_groups, queries + 2, head_width, *whole.shape[1:])
        return tuple(part.flatten(0, 2).contiguous() for part in rows.split([queries, 1, 1], 1))

    def backward(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        parts = [part.reshape(num_groups, -1, head_width, *part.shape[1:]) for part in tensors]
        return (torch.cat(parts, 1).flatten(0, 2),)

    return Rule((source,), targets, forward, backward)


def read_config(config: Mapping[str, Any], where: str = "config.json") -> Decoder.Config:
    """The decoder that an InternLM2 config describes.

    Raises: CheckpointError naming every field that Weft's decoder cannot follow.
    """
    c = {**_DEFAULTS, **config}
    wanted = {"hidden_act": c["hidden_act"] == "silu", "bias": not c["bias"]}
    if unfit := [f"{name}={c[name]!r}" for name, fits in wanted.items() if not fits]:
        raise CheckpointError(f"{where} asks for {', '.join(unfit)}, which no published InternLM2 has")
    theta, scaling = read_rotary(c, where)
    return Decoder.Config(
        vocabulary=c["vocab_size"],
        width=c["hidden_size"],
        num_layers=c["num_hidden_layers"],
        num_heads=c["num_attention_heads"],
        num_key_value_heads=c.get("num_key_value_heads") or c["num_attention_heads"],
        feed_forward_width=c["intermediate_size"],
        context=c["max_position_embeddings"],
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=c["rms_norm_eps"],
        tied_head=c.get("tie_word_embeddings", False),
    )


def write_config(config: Decoder.Config) -> dict[str, Any]:
    """The InternLM2 config of a decoder.

    Raises: CheckpointError for a decoder that the architecture cannot express.
    """
    c = config
    if c.head_norm or c.attention_bias or c.window is not None or c.head_width is not None:
        raise CheckpointError("InternLM2 has no head norms, attention biases, windows or heads of a width of their own")
    rope = write_rotary(c)
    kind = rope.pop("rope_type")
    if kind not in ("default", "linear", "dynamic"):
        raise CheckpointError(f"InternLM2 has linear and dynamic rotary scaling, not {kind!r}; cannot be written")
    return {
        "architectures": ["InternLM2ForCausalLM"],
        "model_type": "internlm2",
        "vocab_size": c.vocabulary,
        "hidden_size": c.width,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "intermediate_size": c.feed_forward_width,
        "max_position_embeddings": c.context,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "rope_scaling": None if kind == "default" else {"type": kind, **rope},
        "hidden_act": "silu",
        "bias": False,
        "tie_word_embeddings": c.tied_head,
    }


def _tiny() -> tuple[Decoder.Config, ...]:
    tiny = Decoder.Config.tiny()
    return tiny, replace(tiny, num_key_value_heads=1, rope_scaling=DynamicScaling(original_context=256))


FORMAT = CheckpointFormat(
    name="internlm2",
    model_types=("internlm2",),
    key_map=key_map,
    read_config=read_config,
    write_config=write_config,
    tiny=_tiny,
)
