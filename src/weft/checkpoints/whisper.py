"""Whisper's encoder in the layout of the `transformers` library: from its own file, or from one of a whole Whisper.

It is written alone, without a prefix; files of the model with its decoder have `encoder.` or `model.encoder.` before the keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weft.checkpoints.activation_names import from_transformers, to_transformers
from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.key_map import KeyMap
from weft.encoders.whisper import Whisper

_DECODER = "writes text; only the encoder is loaded"

ENCODER = KeyMap(
    rename={
        "conv1": "input_convolution",
        "conv2": "halving_convolution",
        "embed_positions.weight": "position_embedding",
        "layers.{i}.self_attn_layer_norm": "blocks.{i}.attention_norm",
        "layers.{i}.self_attn.q_proj": "blocks.{i}.attention.query",
        "layers.{i}.self_attn.k_proj": "blocks.{i}.attention.key",
        "layers.{i}.self_attn.v_proj": "blocks.{i}.attention.value",
        "layers.{i}.self_attn.out_proj": "blocks.{i}.attention.output",
        "layers.{i}.final_layer_norm": "blocks.{i}.feed_forward_norm",
        "layers.{i}.fc1": "blocks.{i}.feed_forward.up",
        "layers.{i}.fc2": "blocks.{i}.feed_forward.down",
        "layer_norm": "final_norm",
    },
    drop={"decoder.*": _DECODER, "proj_out.weight": _DECODER},
    spellings=[("model.", ""), ("encoder.", "")],
)


def read_config(saved: Mapping[str, Any]) -> Whisper.Config:
    """The encoder's config from a `whisper` config; what a file leaves out has the published default (the tiny size)."""
    default = Whisper.Config()
    activation = saved.get("activation_function")
    return Whisper.Config(
        num_mels=saved.get("num_mel_bins", default.num_mels),
        num_frames=saved.get("max_source_positions", default.num_frames),
        width=saved.get("d_model", default.width),
        num_layers=saved.get("encoder_layers", default.num_layers),
        num_heads=saved.get("encoder_attention_heads", default.num_heads),
        feed_forward_width=saved.get("encoder_ffn_dim", default.feed_forward_width),
        activation=default.activation if activation is None else from_transformers(activation),
    )


def write_config(config: Whisper.Config) -> dict[str, Any]:
    """The `whisper` config of an encoder alone."""
    return {
        "architectures": ["WhisperEncoder"],
        "model_type": "whisper",
        "num_mel_bins": config.num_mels,
        "max_source_positions": config.num_frames,
        "d_model": config.width,
        "encoder_layers": config.num_layers,
        "encoder_attention_heads": config.num_heads,
        "encoder_ffn_dim": config.feed_forward_width,
        "activation_function": to_transformers(config.activation),
    }


WHISPER = CheckpointFormat(
    name="whisper",
    model_types=("whisper",),
    key_map=lambda config: ENCODER,
    read_config=read_config,
    write_config=write_config,
    tiny=lambda: (Whisper.Config.tiny(),),
)
