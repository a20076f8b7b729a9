"""The text tower of CLIP's kin in the layout of `open_clip`, which goes back to CLIP's own code."""

from __future__ import annotations

from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rules import split

BLOCK = "blocks.{i}."
INPUTS = ("query", "key", "value")

OPEN_CLIP_TEXT = KeyMap(
    [
        split("transformer.resblocks.{i}.attn.in_proj_weight", [f"{BLOCK}attention.{name}.weight" for name in INPUTS]),
        split("transformer.resblocks.{i}.attn.in_proj_bias", [f"{BLOCK}attention.{name}.bias" for name in INPUTS]),
    ],
    rename={
        "token_embedding": "token_embedding",
        "positional_embedding": "position_embedding.weight",
        "ln_final": "final_norm",
        "transformer.resblocks.{i}.ln_1": f"{BLOCK}attention_norm",
        "transformer.resblocks.{i}.attn.out_proj": f"{BLOCK}attention.output",
        "transformer.resblocks.{i}.ln_2": f"{BLOCK}feed_forward_norm",
        "transformer.resblocks.{i}.mlp.c_fc": f"{BLOCK}feed_forward.up",
        "transformer.resblocks.{i}.mlp.c_proj": f"{BLOCK}feed_forward.down",
    },
)
