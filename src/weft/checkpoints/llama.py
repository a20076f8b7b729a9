"""Llama, Vicuna, DeepSeek-LLM, Mistral, Qwen2 and Qwen3 in `transformers` layout.

Source: the `LlamaForCausalLM`, `MistralForCausalLM`, `Qwen2ForCausalLM` and `Qwen3ForCausalLM` files of `transformers` 4.x
and 5.x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rotary_config import read_rotary, write_rotary
from weft.core.errors import CheckpointError
from weft.language_models.decoder import Decoder
from weft.layers.rotary import DynamicScaling, LinearScaling, Llama3Scaling

_LAYER = {
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.output",
    "self_attn.q_norm": "attention.query_norm",
    "self_attn.k_norm": "attention.key_norm",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "feed_forward_norm",
    "mlp.gate_proj": "feed_forward.gate",
    "mlp.up_proj": "feed_forward.up",
    "mlp.down_proj": "feed_forward.down",
}

LLAMA = KeyMap(
    rename={
        "model.embed_tokens": "embedding",
        **{f"model.layers.{{i}}.{theirs}": f"blocks.{{i}}.{ours}" for theirs, ours in _LAYER.items()},
        "model.norm": "final_norm",
        "lm_head": "output",
    },
    drop={
        "model.layers.{i}.self_attn.rotary_emb.inv_freq": "buffer, rebuilt from the config",
        "model.rotary_emb.inv_freq": "buffer, rebuilt from the config",
    },
)

_QWEN = {"vocab_size": 151_936, "intermediate_size": 22_016, "max_position_embeddings": 32_768, "num_key_value_heads": 32}
# What `transformers` takes for a field that its config.json leaves out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"vocab_size": 32_000, "intermediate_size": 11_008, "max_position_embeddings": 2048},
    "mistral": {
        "vocab_size": 32_000, "intermediate_size": 14_336, "max_position_embeddings": 131_072, "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128},
}  # fmt: skip
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def read_config(config: Mapping[str, Any], where: str = "config.json") -> Decoder.Config:
    """The decoder that a `transformers` config describes.

    Raises: CheckpointError naming every field that Weft's decoder cannot follow.
    """
    kind = config.get("model_type")
    if kind not in _DEFAULTS:
        raise CheckpointError(f"{where} has model_type {kind!r}; this table reads {', '.join(_DEFAULTS)}")
    c: dict[str, Any] = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "rms_norm_eps": 1e-6}
    c |= {**_DEFAULTS[kind], **config}
    heads = c["num_attention_heads"]
    bias = c.get("attention_bias", False)
    wanted = {
        "hidden_act": c.get("hidden_act", "silu") == "silu",
        "mlp_bias": not c.get("mlp_bias", False),
        "use_sliding_window": not c.get("use_sliding_window", False),
        "attention_bias": kind == "qwen2" or not bias,
    }
    if unfit := [f"{name}={c.get(name)!r}" for name, fits in wanted.items() if not fits]:
        raise CheckpointError(f"{where} asks for {', '.join(unfit)}, which Weft's decoder does not have")
    theta, scaling = read_rotary(c, where)
    # FastChat's long Vicunas state the stretched length beside the original one
    stretched = c.get("max_sequence_length", 0) if isinstance(scaling, LinearScaling) else 0
    head_width = c.get("head_dim") or c["hidden_size"] // heads
    return Decoder.Config(
        vocabulary=c["vocab_size"],
        width=c["hidden_size"],
        num_layers=c["num_hidden_layers"],
        num_heads=heads,
        num_key_value_heads=c.get("num_key_value_heads") or heads,
        head_width=None if head_width * heads == c["hidden_size"] else head_width,
        feed_forward_width=c["intermediate_size"],
        context=max(c["max_position_embeddings"], stretched),
        rope_theta=theta,
        rope_scaling=scaling,
        window=c["sliding_window"] if kind == "mistral" else None,
        norm_eps=c["rms_norm_eps"],
        attention_bias=kind == "qwen2",
        head_norm=kind == "qwen3",
        tied_head=c.get("tie_word_embeddings", False),
    )


def write_config(config: Decoder.Config) -> dict[str, Any]:
    """The `transformers` config of a decoder, in the spelling that 4.x and 5.x read.

    Raises: CheckpointError for a decoder that none of the four architectures can express.
    """
    c = config
    traits = {"qwen3": c.head_norm, "qwen2": c.attention_bias, "mistral": c.window is not None}
    kinds = [kind for kind, has in traits.items() if has] or ["llama"]
    if len(kinds) > 1:
        raise CheckpointError(
            "head norms belong to Qwen3, attention biases to Qwen2 and a window to Mistral; a decoder with traits of "
            f"{' and '.join(kinds)} cannot be written"
        )
    kind, rope = kinds[0], write_rotary(c)
    return {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        "vocab_size": c.vocabulary,
        "hidden_size": c.width,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_width or c.width // c.num_heads,
        "intermediate_size": c.feed_forward_width,
        "max_position_embeddings": c.context,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "rope_scaling": None if c.rope_scaling is None else {**rope, "type": rope["rope_type"]},
        "rope_parameters": {"rope_theta": c.rope_theta, **rope},
        "hidden_act": "silu",
        "attention_bias": c.attention_bias,
        "tie_word_embeddings": c.tied_head,
        **({"sliding_window": c.window} if kind == "mistral" else {}),
    }


def _tiny() -> tuple[Decoder.Config, ...]:
    tiny = Decoder.Config.tiny()
    return (
        tiny,
        replace(tiny, rope_scaling=Llama3Scaling(original_context=64), tied_head=True),
        replace(tiny, rope_scaling=LinearScaling()),
        replace(tiny, rope_scaling=DynamicScaling(original_context=256)),
        replace(tiny, window=8),
        replace(tiny, attention_bias=True),
        replace(tiny, head_norm=True, head_width=32),
    )


FORMAT = CheckpointFormat(
    name="llama",
    model_types=tuple(_DEFAULTS),
    key_map=lambda config: LLAMA,
    read_config=read_config,
    write_config=write_config,
    tiny=_tiny,
)
