"""Qwen 1 in its own layout: one matrix for query, key and value, and feed-forwards whose width the config states twice over.

Source: the `QWenLMHeadModel` files of Qwen, and of Qwen-VL beside its encoder; arXiv:2309.16609.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rotary_config import check_context
from weft.checkpoints.rules import split
from weft.core.errors import CheckpointError
from weft.language_models.decoder import Decoder
from weft.layers.rotary import QwenScaling

_LAYER = {
    "ln_1": "attention_norm",
    "attn.c_proj": "attention.output",
    "ln_2": "feed_forward_norm",
    "mlp.w1": "feed_forward.up",
    "mlp.w2": "feed_forward.gate",
    "mlp.c_proj": "feed_forward.down",
}
_BUFFER = "buffer, rebuilt from the config"

QWEN = KeyMap(
    [split("transformer.h.{i}.attn.c_attn", [f"blocks.{{i}}.attention.{part}" for part in ("query", "key", "value")])],
    rename={
        "transformer.wte": "embedding",
        **{f"transformer.h.{{i}}.{theirs}": f"blocks.{{i}}.{ours}" for theirs, ours in _LAYER.items()},
        "transformer.ln_f": "final_norm",
        "lm_head": "output",
    },
    drop={
        "transformer.rotary_emb.inv_freq": _BUFFER,
        "transformer.h.{i}.attn.rotary_emb.inv_freq": _BUFFER,
        "transformer.h.{i}.attn.masked_bias": "a constant of the mask",
    },
)

# What the published configuration class takes for a field that its config.json leaves out.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22_016, "num_hidden_layers": 32,
    "num_attention_heads": 32, "kv_channels": 128, "layer_norm_epsilon": 1e-6, "rotary_pct": 1.0, "rotary_emb_base": 10_000,
    "scale_attn_weights": True, "use_dynamic_ntk": True, "use_logn_attn": True, "no_bias": True, "tie_word_embeddings": False,
}  # fmt: skip
# Names of the first release.
_OLDER = {
    "n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
    "ffn_hidden_size": "intermediate_size",
}  # fmt: skip


def read_config(config: Mapping[str, Any], where: str = "config.json") -> Decoder.Config:
    """The decoder that a Qwen 1 config describes.

    Its context is the length that it was trained on, within which the two means for longer texts change nothing; they come into
    force when `context` is set higher, up to the config's `max_position_embeddings`.

    Raises: CheckpointError naming every field that Weft's decoder cannot follow.
    """
    c = {**_DEFAULTS, **{_OLDER.get(name, name): value for name, value in config.items()}}
    if "seq_length" not in c:
        raise CheckpointError(f"{where} lacks seq_length, the length that Qwen was trained on")
    wanted = {
        "kv_channels": c["kv_channels"] * c["num_attention_heads"] == c["hidden_size"],
        "rotary_pct": c["rotary_pct"] == 1.0,
        "scale_attn_weights": bool(c["scale_attn_weights"]),
        "no_bias": bool(c["no_bias"]),
    }
    if unfit := [f"{name}={c[name]!r}" for name, fits in wanted.items() if not fits]:
        raise CheckpointError(f"{where} asks for {', '.join(unfit)}, which no published Qwen 1 has")
    if "visual" in c:
        raise CheckpointError(f"{where} describes Qwen-VL, a language model with an encoder; this table reads Qwen alone")
    trained = c["seq_length"]
    return Decoder.Config(
        vocabulary=c["vocab_size"],
        width=c["hidden_size"],
        num_layers=c["num_hidden_layers"],
        num_heads=c["num_attention_heads"],
        num_key_value_heads=c["num_attention_heads"],
        feed_forward_width=c["intermediate_size"] // 2,
        context=trained,
        rope_theta=float(c["rotary_emb_base"]),
        rope_scaling=QwenScaling(original_context=trained) if c["use_dynamic_ntk"] else None,
        log_scaling_context=trained if c["use_logn_attn"] else None,
        norm_eps=c["layer_norm_epsilon"],
        attention_bias=True,
        tied_head=c["tie_word_embeddings"],
    )


def write_config(config: Decoder.Config) -> dict[str, Any]:
    """The Qwen 1 config of a decoder.

    Raises: CheckpointError for a decoder that the architecture cannot express.
    """
    c = config
    fits = {
        "attention_bias": c.attention_bias,
        "num_key_value_heads": c.num_key_value_heads == c.num_heads,
        "head_norm": not c.head_norm,
        "head_width": c.head_width is None,
        "window": c.window is None,
        "rope_scaling": c.rope_scaling is None or isinstance(c.rope_scaling, QwenScaling),
    }
    if unfit := [f"{name}={getattr(c, name)!r}" for name, fit in fits.items() if not fit]:
        raise CheckpointError(f"Qwen 1 has no {', '.join(unfit)}; cannot be written")
    if isinstance(c.rope_scaling, QwenScaling):
        check_context(c, c.rope_scaling.original_context)
    if c.log_scaling_context is not None:
        check_context(c, c.log_scaling_context)
    return {
        "architectures": ["QWenLMHeadModel"],
        "model_type": "qwen",
        "vocab_size": c.vocabulary,
        "hidden_size": c.width,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "kv_channels": c.width // c.num_heads,
        "intermediate_size": 2 * c.feed_forward_width,
        "seq_length": c.context,
        "max_position_embeddings": c.context,
        "layer_norm_epsilon": c.norm_eps,
        "rotary_emb_base": c.rope_theta,
        "rotary_pct": 1.0,
        "use_dynamic_ntk": c.rope_scaling is not None,
        "use_logn_attn": c.log_scaling_context is not None,
        "scale_attn_weights": True,
        "no_bias": True,
        "tie_word_embeddings": c.tied_head,
    }


def _tiny() -> tuple[Decoder.Config, ...]:
    plain = replace(Decoder.Config.tiny(), num_key_value_heads=4, attention_bias=True)
    return plain, replace(plain, rope_scaling=QwenScaling(original_context=256), log_scaling_context=256)


FORMAT = CheckpointFormat(
    name="qwen",
    model_types=("qwen",),
    key_map=lambda config: QWEN,
    read_config=read_config,
    write_config=write_config,
    tiny=_tiny,
)
