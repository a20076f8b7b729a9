"""OPT in `transformers` layout.

Source: the `OPTForCausalLM` files of `transformers` 4.x and 5.x; some published ones leave out the leading `model.`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from weft.checkpoints.activation_names import from_transformers, to_transformers
from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.key_map import KeyMap
from weft.core.errors import CheckpointError
from weft.language_models.opt import Opt

_LAYER = {
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.out_proj": "attention.output",
    "self_attn_layer_norm": "attention_norm",
    "fc1": "feed_forward.up",
    "fc2": "feed_forward.down",
}

# What `transformers` takes for a field that a config.json leaves out.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50_272,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "ffn_dim": 3072,
    "max_position_embeddings": 2048,
    "num_attention_heads": 12,
    "activation_function": "relu",
    "do_layer_norm_before": True,
}
# Fields that have one value in every published OPT; Galactica, of the same class, differs.
_FIXED: dict[str, Any] = {
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "_remove_final_layer_norm": False,
    "tie_word_embeddings": True,
}


def key_map(config: Opt.Config) -> KeyMap:
    """The table of one OPT: where the second norm of a block stands depends on `pre_norm`."""
    layer = _LAYER | {"final_layer_norm": "feed_forward_norm" if config.pre_norm else "feed_forward.norm"}
    return KeyMap(
        rename={
            "model.decoder.embed_tokens": "embedding",
            "model.decoder.embed_positions": "position_embedding",
            "model.decoder.project_in": "input_projection",
            "model.decoder.project_out": "output_projection",
            **{f"model.decoder.layers.{{i}}.{theirs}": f"blocks.{{i}}.{ours}" for theirs, ours in layer.items()},
            "model.decoder.final_layer_norm": "final_norm",
            "lm_head": "output",
        },
        spellings=[("decoder.", "model.decoder.")],
    )


def read_config(config: Mapping[str, Any], where: str = "config.json") -> Opt.Config:
    """The decoder that a `transformers` config describes.

    Raises: CheckpointError naming every field that Weft's OPT cannot follow.
    """
    c = _DEFAULTS | _FIXED | dict(config)
    if unfit := [f"{name}={c[name]!r}" for name, value in _FIXED.items() if c[name] != value]:
        raise CheckpointError(f"{where} asks for {', '.join(unfit)}, which Weft's OPT does not have")
    narrow = c.get("word_embed_proj_dim")
    return Opt.Config(
        vocabulary=c["vocab_size"],
        width=c["hidden_size"],
        num_layers=c["num_hidden_layers"],
        num_heads=c["num_attention_heads"],
        feed_forward_width=c["ffn_dim"],
        embedding_width=None if narrow in (None, c["hidden_size"]) else narrow,
        context=c["max_position_embeddings"],
        pre_norm=c["do_layer_norm_before"],
        activation=from_transformers(c["activation_function"]),
    )


def write_config(config: Opt.Config) -> dict[str, Any]:
    """The `transformers` config of an OPT.

    Raises: CheckpointError for norms with another epsilon than 1e-5, which the layout has no field for.
    """
    c = config
    if c.norm_eps != 1e-5:
        raise CheckpointError(f"the OPT layout has no field for norm_eps {c.norm_eps}; its norms have 1e-5")
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "vocab_size": c.vocabulary,
        "hidden_size": c.width,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "ffn_dim": c.feed_forward_width,
        "word_embed_proj_dim": c.embedding_width or c.width,
        "max_position_embeddings": c.context,
        "do_layer_norm_before": c.pre_norm,
        "activation_function": to_transformers(c.activation),
        **_FIXED,
    }


def _tiny() -> tuple[Opt.Config, ...]:
    tiny = Opt.Config.tiny()
    return tiny, replace(tiny, embedding_width=48, pre_norm=False)


FORMAT = CheckpointFormat(
    name="opt",
    model_types=("opt",),
    key_map=key_map,
    read_config=read_config,
    write_config=write_config,
    tiny=_tiny,
)
