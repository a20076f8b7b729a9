"""MPT in `transformers` layout, and the older layout of MosaicML's first model, MPT-1B.

Of a config's `attn_config`, `transformers` 5.23 follows `clip_qkv`, `softmax_scale` and dropout alone: norms of queries and
keys are left out, and ALiBi falls as for an `alibi_bias_max` of 8 whatever that field says. Weft reads `alibi_bias_max` as
MosaicML's own code does, and norms of queries and keys in the older layout only, which is the one that published them.

Source: the `MptForCausalLM` files of `transformers` 4.x and 5.x; the `MosaicGPT` files of mpt-1b-redpajama-200b.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rules import split
from weft.core.errors import CheckpointError
from weft.language_models.mpt import Mpt

_SIZES = {
    "d_model": 2048,
    "n_heads": 16,
    "n_layers": 24,
    "max_seq_len": 2048,
    "vocab_size": 50_368,
}
# Fields of which Weft's MPT has one value.
_SAME: dict[str, Any] = {"logit_scale": None, "embedding_fraction": 1.0}
_MODEL: dict[str, Any] = {"expansion_ratio": 4, "no_bias": True, "tie_word_embeddings": True} | _SAME
_ATTENTION: dict[str, Any] = {
    "attn_type": "multihead_attention",
    "softmax_scale": None,
    "prefix_lm": False,
    "qk_ln": False,
    "attn_uses_sequence_id": False,
    "alibi": True,
}
_MOSAIC: dict[str, Any] = {
    "mlp_ratio": 4,
    "softmax_scale": None,
    "prefix_lm": False,
    "attn_uses_sequence_id": False,
    "alibi": True,
    "no_bias": True,
} | _SAME


def _layout(norms: tuple[str, str], feed_forward: tuple[str, str], final_norm: str, spelt: dict[str, str]) -> KeyMap:
    block = "transformer.blocks.{i}."
    names = {
        norms[0]: "attention_norm",
        norms[1]: "feed_forward_norm",
        "attn.out_proj": "attention.output",
        feed_forward[0]: "feed_forward.up",
        feed_forward[1]: "feed_forward.down",
        **spelt,
    }
    return KeyMap(
        [split(f"{block}attn.Wqkv", [f"blocks.{{i}}.attention.{name}" for name in ("query", "key", "value")])],
        rename={
            "transformer.wte": "embedding",
            **{block + theirs: f"blocks.{{i}}.{ours}" for theirs, ours in names.items()},
            f"transformer.{final_norm}": "final_norm",
            "lm_head": "output",
        },
    )


MPT = _layout(("norm_1", "norm_2"), ("ffn.up_proj", "ffn.down_proj"), "norm_f", {})
MOSAIC_GPT = _layout(
    ("ln_1", "ln_2"),
    ("mlp.mlp_up", "mlp.mlp_down"),
    "ln_f",
    {"attn.q_ln": "attention.query.norm", "attn.k_ln": "attention.key.norm"},
)


def read_config(config: Mapping[str, Any], where: str = "config.json") -> Mpt.Config:
    """The decoder that a config in `transformers` layout describes.

    Raises: CheckpointError naming every field that Weft's MPT cannot follow.
    """
    c = _SIZES | _MODEL | {"layer_norm_epsilon": 1e-5, **config}
    attention = _ATTENTION | {"clip_qkv": None, "alibi_bias_max": 8} | dict(c.get("attn_config") or {})
    _check({name: c[name] for name in _MODEL}, _MODEL, where)
    _check({name: attention[name] for name in _ATTENTION}, _ATTENTION, f"{where}, attn_config,")
    return _build(c, clip=attention["clip_qkv"], bias_exponent=attention["alibi_bias_max"], norm_eps=c["layer_norm_epsilon"])


def read_mosaic_config(config: Mapping[str, Any], where: str = "config.json") -> Mpt.Config:
    """The decoder that a MosaicGPT config describes. An absent `alibi` or `no_bias` is False there, and refused.

    Raises: CheckpointError naming every field that Weft's MPT cannot follow.
    """
    c = _SIZES | _MOSAIC | {"alibi": False, "no_bias": False} | dict(config)
    _check({name: c[name] for name in _MOSAIC}, _MOSAIC, where)
    return _build(
        c,
        clip=c.get("attn_clip_qkv"),
        bias_exponent=c.get("alibi_bias_max", 8),
        query_key_norm=c.get("attn_qk_ln", False),
    )


def write_config(config: Mpt.Config) -> dict[str, Any]:
    """The `transformers` config of an MPT.

    Raises: CheckpointError for norms of queries and keys, which `transformers` would leave out without a word.
    """
    if config.query_key_norm:
        raise CheckpointError("the MPT layout of transformers leaves norms of queries and keys out; write mosaic_gpt instead")
    attention = _ATTENTION | {"clip_qkv": config.clip, "alibi_bias_max": config.bias_exponent}
    return {
        "architectures": ["MptForCausalLM"],
        "model_type": "mpt",
        **_written_sizes(config),
        **_MODEL,
        "layer_norm_epsilon": config.norm_eps,
        "attn_config": attention,
    }


def write_mosaic_config(config: Mpt.Config) -> dict[str, Any]:
    """The MosaicGPT config of an MPT.

    Raises: CheckpointError for norms with another epsilon than 1e-5, which the layout has no field for.
    """
    if config.norm_eps != 1e-5:
        raise CheckpointError(f"the MosaicGPT layout has no field for norm_eps {config.norm_eps}; its norms have 1e-5")
    return {
        "architectures": ["MosaicGPT"],
        "model_type": "mosaic_gpt",
        **_written_sizes(config),
        **_MOSAIC,
        "attn_clip_qkv": config.clip,
        "attn_qk_ln": config.query_key_norm,
        "alibi_bias_max": config.bias_exponent,
    }


def _build(c: Mapping[str, Any], **rest: Any) -> Mpt.Config:
    return Mpt.Config(
        vocabulary=c["vocab_size"],
        width=c["d_model"],
        num_layers=c["n_layers"],
        num_heads=c["n_heads"],
        context=c["max_seq_len"],
        **rest,
    )


def _written_sizes(c: Mpt.Config) -> dict[str, Any]:
    sizes = (c.width, c.num_heads, c.num_layers, c.context, c.vocabulary)
    return dict(zip(_SIZES, sizes, strict=True))


def _check(found: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    if unfit := [f"{name}={found[name]!r}" for name in wanted if found[name] != wanted[name]]:
        raise CheckpointError(f"{where} asks for {', '.join(unfit)}, which Weft's MPT does not have")


def _tiny() -> tuple[Mpt.Config, ...]:
    tiny = replace(Mpt.Config.tiny(), query_key_norm=False)
    return tiny, replace(tiny, clip=None, num_heads=4, bias_exponent=16)


FORMAT = CheckpointFormat(
    name="mpt",
    model_types=("mpt",),
    key_map=lambda config: MPT,
    read_config=read_config,
    write_config=write_config,
    tiny=_tiny,
)
MOSAIC_GPT_FORMAT = CheckpointFormat(
    name="mosaic_gpt",
    model_types=("mosaic_gpt",),
    key_map=lambda config: MOSAIC_GPT,
    read_config=read_mosaic_config,
    write_config=write_mosaic_config,
    tiny=lambda: (Mpt.Config.tiny(), replace(Mpt.Config.tiny(), clip=None)),
)
