"""The Perceiver Resampler in the layouts of OpenFlamingo's files and of `transformers`' IDEFICS.

Both tables name what lies inside the resampler; a system's map puts them under its own prefix with `under`: `perceiver.` in
OpenFlamingo's files, `model.perceiver_resampler.` in IDEFICS's.
"""

from __future__ import annotations

from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rules import split, squeeze

OPENFLAMINGO = KeyMap(
    [
        split("layers.{i}.0.to_kv.weight", [f"layers.{{i}}.attention.{name}.weight" for name in ("key", "value")]),
        squeeze("media_time_embs", "media_embedding", axes=(1,)),
    ],
    rename={
        "latents": "latents",
        "frame_embs": "frame_embedding.table",
        "norm": "final_norm",
        "layers.{i}.0.norm_media": "layers.{i}.media_norm",
        "layers.{i}.0.norm_latents": "layers.{i}.latent_norm",
        "layers.{i}.0.to_q": "layers.{i}.attention.query",
        "layers.{i}.0.to_out": "layers.{i}.attention.output",
        "layers.{i}.1.0": "layers.{i}.feed_forward_norm",
        "layers.{i}.1.1": "layers.{i}.feed_forward.up",
        "layers.{i}.1.3": "layers.{i}.feed_forward.down",
    },
)

IDEFICS = KeyMap(
    rename={
        "latents": "latents",
        "layer_norm": "final_norm",
        "blocks.{i}.0.context_layer_norm": "layers.{i}.media_norm",
        "blocks.{i}.0.latents_layer_norm": "layers.{i}.latent_norm",
        "blocks.{i}.0.q_layer_norm": "layers.{i}.attention.query_norm",
        "blocks.{i}.0.k_layer_norm": "layers.{i}.attention.key_norm",
        "blocks.{i}.0.q_proj": "layers.{i}.attention.query",
        "blocks.{i}.0.k_proj": "layers.{i}.attention.key",
        "blocks.{i}.0.v_proj": "layers.{i}.attention.value",
        "blocks.{i}.0.output_proj": "layers.{i}.attention.output",
        "blocks.{i}.1.ln": "layers.{i}.feed_forward_norm",
        "blocks.{i}.1.fc": "layers.{i}.feed_forward.up",
        "blocks.{i}.1.c_proj": "layers.{i}.feed_forward.down",
    },
)
