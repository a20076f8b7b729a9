"""The gated blocks of Flamingo's family in the layouts of OpenFlamingo's files and of `transformers`' IDEFICS and Llama 3.2.

Each table names what lies inside one block; a system's map puts it under the prefix of its blocks with `under`.
"""

from __future__ import annotations

from typing import Literal

from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rules import rename, split, squeeze

OPENFLAMINGO = KeyMap(
    [split("attn.to_kv.weight", ["attention.key.weight", "attention.value.weight"])],
    rename={
        "attn_gate": "attention_gate",
        "attn.norm": "attention_norm",
        "attn.to_q": "attention.query",
        "attn.to_out": "attention.output",
        "ff_gate": "feed_forward_gate",
        "ff.0": "feed_forward_norm",
        "ff.1": "feed_forward.up",
        "ff.3": "feed_forward.down",
    },
)

_LLAMA_TYPE = {
    "cross_attn.q_proj": "attention.query",
    "cross_attn.k_proj": "attention.key",
    "cross_attn.v_proj": "attention.value",
    "cross_attn.o_proj": "attention.output",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "feed_forward_norm",
    "mlp.gate_proj": "feed_forward.gate",
    "mlp.up_proj": "feed_forward.up",
    "mlp.down_proj": "feed_forward.down",
}

MLLAMA = KeyMap(
    rename={
        **_LLAMA_TYPE,
        "cross_attn.q_norm": "attention.query_norm",
        "cross_attn.k_norm": "attention.key_norm",
        "cross_attn_attn_gate": "attention_gate",
        "cross_attn_mlp_gate": "feed_forward_gate",
    }
)


def idefics(gates: Literal["scalar", "vector"]) -> KeyMap:
    """IDEFICS' block, whose gates for each channel are stored with two axes of length one in front."""
    named = {"alpha_cross_attn": "attention_gate", "alpha_dense": "feed_forward_gate"}
    rules = [squeeze(s, t, axes=(0, 1)) if gates == "vector" else rename(s, t) for s, t in named.items()]
    norms = {f"cross_attn.{side}_layer_norm": f"attention.{name}_norm" for side, name in (("q", "query"), ("k", "key"))}
    return KeyMap(rules, rename=_LLAMA_TYPE | norms)
