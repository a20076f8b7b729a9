"""T5 1.1 and Flan-T5 in `transformers` layout.

Source: the `T5ForConditionalGeneration` files of `transformers` 4.x and 5.x, whose keys are the same. From 5.0 on every config
says `tie_word_embeddings`, whatever the file holds, and the field of old lives on as `scale_decoder_outputs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from weft.checkpoints.activation_names import from_transformers, to_transformers
from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.key_map import KeyMap
from weft.language_models.t5 import T5

_TABLE = "the token table once more, which both halves share"
_DROP = {
    "encoder.embed_tokens.weight": _TABLE,
    "decoder.embed_tokens.weight": _TABLE,
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": "older files hold it and no model reads it",
}
_TANH = "gelu_tanh"  # which T5's files call gelu_new
_ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "output"}


def key_map(config: T5.Config) -> KeyMap:
    """The map of a whole T5."""
    return KeyMap(
        rename={
            "shared": "embedding",
            **_half("encoder", "encoder.", config.gated, feed_forward=1),
            **_half("decoder", "", config.gated, feed_forward=2),
            **_attention("decoder", "layer.1", "EncDecAttention", "blocks.{i}.before_feed_forward.attention"),
            "decoder.block.{i}.layer.1.layer_norm": "blocks.{i}.before_feed_forward.norm",
            "lm_head": "output",
        },
        drop=_DROP,
    )


def _half(theirs: str, ours: str, gated: bool, feed_forward: int) -> dict[str, str]:
    """One stack; `feed_forward` is the number of the layer in its blocks."""
    inner = {"wi_0": "gate", "wi_1": "up", "wo": "down"} if gated else {"wi": "up", "wo": "down"}
    block = f"{theirs}.block.{{i}}"
    return {
        f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias": f"{ours}position_bias",
        **_attention(theirs, "layer.0", "SelfAttention", f"{ours}blocks.{{i}}.attention"),
        f"{block}.layer.0.layer_norm": f"{ours}blocks.{{i}}.attention_norm",
        **{
            f"{block}.layer.{feed_forward}.DenseReluDense.{name}": f"{ours}blocks.{{i}}.feed_forward.{part}"
            for name, part in inner.items()
        },
        f"{block}.layer.{feed_forward}.layer_norm": f"{ours}blocks.{{i}}.feed_forward_norm",
        f"{theirs}.final_layer_norm": f"{ours}final_norm",
    }


def _attention(half: str, layer: str, name: str, ours: str) -> dict[str, str]:
    return {f"{half}.block.{{i}}.{layer}.{name}.{theirs}": f"{ours}.{part}" for theirs, part in _ATTENTION.items()}


def read_config(saved: Mapping[str, Any]) -> T5.Config:
    """The T5 that a `transformers` config describes; a field that it leaves out has that library's default."""
    kind = str(saved.get("feed_forward_proj", "relu"))
    gated = kind.startswith("gated-")
    # "gated-gelu" has always meant the tanh form; a file that means the other one (BLIP-2's) says so in `dense_act_fn`
    named = "gelu_new" if kind == "gated-gelu" else kind.removeprefix("gated-")
    num_layers = saved.get("num_layers", 6)
    start = saved.get("decoder_start_token_id")
    return T5.Config(
        vocabulary=saved.get("vocab_size", 32_128),
        width=saved.get("d_model", 512),
        num_layers=num_layers,
        num_decoder_layers=saved.get("num_decoder_layers") or num_layers,
        num_heads=saved.get("num_heads", 8),
        head_width=saved.get("d_kv", 64),
        feed_forward_width=saved.get("d_ff", 2048),
        context=saved.get("n_positions", 512),
        num_buckets=saved.get("relative_attention_num_buckets", 32),
        max_distance=saved.get("relative_attention_max_distance", 128),
        activation=_TANH if (activation := saved.get("dense_act_fn", named)) == "gelu_new" else from_transformers(activation),
        gated=gated,
        tied_head=saved.get("scale_decoder_outputs", saved.get("tie_word_embeddings", True)),
        start_token=saved.get("pad_token_id", 0) if start is None else start,
        norm_eps=saved.get("layer_norm_epsilon", 1e-6),
    )


def write_config(config: T5.Config) -> dict[str, Any]:
    """The `transformers` config of a T5, in the spelling that 4.x and 5.x read."""
    c = config
    activation = "gelu_new" if c.activation == _TANH else to_transformers(c.activation)
    gate = "gelu" if activation == "gelu_new" else activation
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": c.vocabulary,
        "d_model": c.width,
        "d_kv": c.head_width,
        "d_ff": c.feed_forward_width,
        "num_layers": c.num_layers,
        "num_decoder_layers": c.num_decoder_layers,
        "num_heads": c.num_heads,
        "n_positions": c.context,
        "relative_attention_num_buckets": c.num_buckets,
        "relative_attention_max_distance": c.max_distance,
        "feed_forward_proj": f"gated-{gate}" if c.gated else activation,
        "dense_act_fn": activation,
        "is_gated_act": c.gated,
        "layer_norm_epsilon": c.norm_eps,
        "tie_word_embeddings": c.tied_head,
        "decoder_start_token_id": c.start_token,
        "pad_token_id": c.start_token,
    }


def _tiny() -> tuple[T5.Config, ...]:
    tiny = T5.Config.tiny()
    first = replace(tiny, gated=False, activation="relu", tied_head=True, num_decoder_layers=1)
    return tiny, first, replace(tiny, activation="gelu")


FORMAT = CheckpointFormat(
    name="t5",
    model_types=("t5",),
    key_map=key_map,
    read_config=read_config,
    write_config=write_config,
    tiny=_tiny,
)
