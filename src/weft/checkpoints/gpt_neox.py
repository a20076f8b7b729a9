"""GPT-NeoX, Pythia and RedPajama-INCITE in `transformers` layout.

Source: the `GPTNeoXForCausalLM` files of `transformers` 4.x and 5.x.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from weft.checkpoints.activation_names import from_transformers, to_transformers
from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rules import Rule
from weft.core.errors import CheckpointError
from weft.language_models.gpt_neox import GptNeox

_LAYER = {
    "attention.dense": "attention.output",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "feed_forward_norm",
    "mlp.dense_h_to_4h": "feed_forward.up",
    "mlp.dense_4h_to_h": "feed_forward.down",
}

# What `transformers` takes for a field that a config.json leaves out.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50_432,
    "hidden_size": 6144,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "intermediate_size": 24_576,
    "max_position_embeddings": 2048,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "use_parallel_residual": True,
    "attention_bias": True,
    "tie_word_embeddings": False,
}
_ROTARY = "buffer, rebuilt from the config"
_MASK = "buffer of the causal mask, which the attention rule replaces"


def key_map(config: GptNeox.Config) -> KeyMap:
    """The table of one GPT-NeoX: how the fused rows divide depends on the number of heads and on what turns."""
    layer = "gpt_neox.layers.{i}."
    parts = [f"blocks.{{i}}.attention.{name}" for name in ("query", "key", "value")]
    return KeyMap(
        [_fused_by_head(f"{layer}attention.query_key_value", parts, config)],
        rename={
            "gpt_neox.embed_in": "embedding",
            **{layer + theirs: f"blocks.{{i}}.{ours}" for theirs, ours in _LAYER.items()},
            "gpt_neox.final_layer_norm": "final_norm",
            "embed_out": "output",
        },
        drop={
            f"{layer}attention.rotary_emb.inv_freq": _ROTARY,
            "gpt_neox.rotary_emb.inv_freq": _ROTARY,
            f"{layer}attention.bias": _MASK,
            f"{layer}attention.masked_bias": _MASK,
        },
        spellings=[("lm_head.", "embed_out.")],  # what a running model of 5.x calls it
    )


def channel_order(head_width: int, rotated_width: int) -> Tensor:
    """Which channel of a published head stands at each place of ours.

    Published heads turn their first `rotated_width` channels, the i-th with the one half of `rotated_width` further; ours turn
    the i-th with the one half a head further.
    """
    turned, still = torch.arange(rotated_width).chunk(2), torch.arange(rotated_width, head_width).chunk(2)
    return torch.cat((turned[0], still[0], turned[1], still[1])) if rotated_width < head_width else torch.arange(head_width)


def _fused_by_head(source: str, targets: Sequence[str], config: GptNeox.Config) -> Rule:
    """Rows [H * (query, key, value) * d] become those of three layers, [H * d] each, turned channels in `channel_order`."""
    heads, width = config.num_heads, config.head_width
    order = channel_order(width, config.rotated_width)
    back = order.argsort()

    def forward(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        (fused,) = tensors
        query, key, value = fused.view(heads, 3, width, *fused.shape[1:]).unbind(1)
        return tuple(part.flatten(0, 1) for part in (query[:, order], key[:, order], value))

    def backward(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        query, key, value = (part.view(heads, width, *part.shape[1:]) for part in tensors)
        return (torch.stack((query[:, back], key[:, back], value), 1).flatten(0, 2),)

    return Rule((source,), tuple(targets), forward, backward)


def read_config(config: Mapping[str, Any], where: str = "config.json") -> GptNeox.Config:
    """The decoder that a `transformers` config describes.

    Raises: CheckpointError naming every field that Weft's GPT-NeoX cannot follow.
    """
    c = _DEFAULTS | dict(config)
    rope = {**(c.get("rope_scaling") or {}), **(c.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    unfit = [f"{name}={value!r}" for name, value, fits in (
        ("attention_bias", c["attention_bias"], c["attention_bias"]), ("rope_type", kind, kind == "default"),
    ) if not fits]  # fmt: skip
    if unfit:
        raise CheckpointError(f"{where} asks for {', '.join(unfit)}, which Weft's GPT-NeoX does not have")
    activation = c["hidden_act"]
    return GptNeox.Config(
        vocabulary=c["vocab_size"],
        width=c["hidden_size"],
        num_layers=c["num_hidden_layers"],
        num_heads=c["num_attention_heads"],
        feed_forward_width=c["intermediate_size"],
        context=c["max_position_embeddings"],
        rope_theta=float(rope.get("rope_theta", c.get("rotary_emb_base", 10_000.0))),
        rotated_fraction=float(rope.get("partial_rotary_factor", c.get("rotary_pct", 0.25))),
        parallel_residual=c["use_parallel_residual"],
        activation="gelu_tanh" if activation == "gelu_fast" else from_transformers(activation),
        norm_eps=c["layer_norm_eps"],
        tied_head=c["tie_word_embeddings"],
    )


def write_config(config: GptNeox.Config) -> dict[str, Any]:
    """The `transformers` config of a GPT-NeoX, in the spelling that 4.x and 5.x read."""
    c = config
    rope = {"rope_type": "default", "rope_theta": c.rope_theta, "partial_rotary_factor": c.rotated_fraction}
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": c.vocabulary,
        "hidden_size": c.width,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "intermediate_size": c.feed_forward_width,
        "max_position_embeddings": c.context,
        "rotary_emb_base": c.rope_theta,
        "rotary_pct": c.rotated_fraction,
        "rope_parameters": rope,
        "use_parallel_residual": c.parallel_residual,
        "attention_bias": True,
        "hidden_act": to_transformers(c.activation),
        "layer_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tied_head,
    }


def _tiny() -> tuple[GptNeox.Config, ...]:
    tiny = GptNeox.Config.tiny()
    return tiny, replace(tiny, rotated_fraction=1.0, parallel_residual=False, tied_head=True)


FORMAT = CheckpointFormat(
    name="gpt_neox",
    model_types=("gpt_neox",),
    key_map=key_map,
    read_config=read_config,
    write_config=write_config,
    tiny=_tiny,
)
