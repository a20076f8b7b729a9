"""The resampler in the layout of Qwen-VL's files: `attn_pool`, `ln_post` and `proj` inside the image encoder.

A system's map puts the table under its own prefix with `under`.
"""

from __future__ import annotations

from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rules import split, transpose

_INPUTS = ("query", "key", "value")

QWEN_RESAMPLER = KeyMap(
    [
        split("attn_pool.attn.in_proj_weight", [f"resampler.attention.{name}.weight" for name in _INPUTS]),
        split("attn_pool.attn.in_proj_bias", [f"resampler.attention.{name}.bias" for name in _INPUTS]),
        transpose("proj", "output.weight"),  # the file's matrix stands to the right of the tokens
    ],
    rename={
        "attn_pool.query": "resampler.queries",
        "attn_pool.pos_embed": "position_table",
        "attn_pool.kv_proj": "resampler.input",
        "attn_pool.attn.out_proj": "resampler.attention.output",
        "attn_pool.ln_q": "resampler.query_norm",
        "attn_pool.ln_kv": "resampler.feature_norm",
        "ln_post": "final_norm",
    },
)
