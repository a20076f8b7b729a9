"""HuBERT in the layout of the `transformers` library: the encoder alone, or inside a model with a head, whose head is dropped.

Files of version 4 call the two halves of the weight norm `weight_g` and `weight_v`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from weft.checkpoints.activation_names import from_transformers, to_transformers
from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rules import read_only, rename
from weft.core.errors import CheckpointError
from weft.encoders.hubert import Hubert
from weft.layers.waveform_convolutions import KERNELS, STRIDES

_POSITIONS = "encoder.pos_conv_embed.conv"
_HEAD = "a head for one task, the encoder serves features"

SHARED = KeyMap.join(
    KeyMap(
        rename={
            "feature_extractor.conv_layers.{i}.conv": "convolutions.layers.{i}.convolution",
            "feature_extractor.conv_layers.{i}.layer_norm": "convolutions.layers.{i}.norm",
            "feature_projection.layer_norm": "feature_norm",
            "feature_projection.projection": "feature_projection",
            "masked_spec_embed": "mask_embedding",
            f"{_POSITIONS}.bias": "position_convolution.bias",
            f"{_POSITIONS}.parametrizations.weight.original0": "position_convolution.magnitude",
            f"{_POSITIONS}.parametrizations.weight.original1": "position_convolution.direction",
            "encoder.layers.{i}.attention.q_proj": "blocks.{i}.attention.query",
            "encoder.layers.{i}.attention.k_proj": "blocks.{i}.attention.key",
            "encoder.layers.{i}.attention.v_proj": "blocks.{i}.attention.value",
            "encoder.layers.{i}.attention.out_proj": "blocks.{i}.attention.output",
            "encoder.layers.{i}.layer_norm": "blocks.{i}.attention_norm",
            "encoder.layers.{i}.feed_forward.intermediate_dense": "blocks.{i}.feed_forward.up",
            "encoder.layers.{i}.feed_forward.output_dense": "blocks.{i}.feed_forward.down",
        },
        drop=dict.fromkeys(("lm_head.*", "projector.*", "classifier.*", "layer_weights"), _HEAD),
    ),
    KeyMap(
        read_only(
            rename(f"{_POSITIONS}.weight_g", "position_convolution.magnitude"),
            rename(f"{_POSITIONS}.weight_v", "position_convolution.direction"),
        )
    ),
    spellings=[("hubert.", "")],
)


def key_map(config: Hubert.Config) -> KeyMap:
    """The norms stand elsewhere in a pre-norm model, under the same names."""
    last_norm, block_norm = ("final_norm", "feed_forward_norm") if config.pre_norm else ("input_norm", "feed_forward.norm")
    norms = {"encoder.layer_norm": last_norm, "encoder.layers.{i}.final_layer_norm": f"blocks.{{i}}.{block_norm}"}
    return KeyMap.join(SHARED, KeyMap(rename=norms))


def read_config(saved: Mapping[str, Any]) -> Hubert.Config:
    """The encoder's config from a `hubert` config; what a file leaves out has the published default (the base size).

    Raises: CheckpointError for a variant that HuBERT's papers do not have.
    """
    default = Hubert.Config()
    widths = saved.get("conv_dim", (default.convolution_width,) * len(KERNELS))
    _expect(saved, "conv_kernel", list(KERNELS))
    _expect(saved, "conv_stride", list(STRIDES))
    _expect(saved, "conv_dim", [widths[0]] * len(KERNELS))
    _expect(saved, "conv_pos_batch_norm", False)
    _expect(saved, "feat_proj_layer_norm", True)
    _expect(saved, "feat_extract_activation", "gelu")
    _expect(saved, "adapter_attn_dim", None)
    activation = saved.get("hidden_act")
    return Hubert.Config(
        convolution_width=widths[0],
        convolution_norm=saved.get("feat_extract_norm", default.convolution_norm),
        convolution_bias=saved.get("conv_bias", default.convolution_bias),
        width=saved.get("hidden_size", default.width),
        num_layers=saved.get("num_hidden_layers", default.num_layers),
        num_heads=saved.get("num_attention_heads", default.num_heads),
        feed_forward_width=saved.get("intermediate_size", default.feed_forward_width),
        pre_norm=saved.get("do_stable_layer_norm", default.pre_norm),
        position_kernel=saved.get("num_conv_pos_embeddings", default.position_kernel),
        position_groups=saved.get("num_conv_pos_embedding_groups", default.position_groups),
        activation=default.activation if activation is None else from_transformers(activation),
        norm_eps=saved.get("layer_norm_eps", default.norm_eps),
        dropout=saved.get("hidden_dropout", default.dropout),
        layer_drop=saved.get("layerdrop", default.layer_drop),
    )


def _expect(saved: Mapping[str, Any], name: str, value: Any) -> None:
    found = saved.get(name, value)
    found = list(found) if isinstance(found, tuple) else found
    if found != value:
        raise CheckpointError(f"Hubert is built with {name}={value}, the config says {found}")


def write_config(config: Hubert.Config) -> dict[str, Any]:
    """The `hubert` config of an encoder."""
    return {
        "architectures": ["HubertModel"],
        "model_type": "hubert",
        "conv_dim": [config.convolution_width] * len(KERNELS),
        "conv_kernel": list(KERNELS),
        "conv_stride": list(STRIDES),
        "conv_bias": config.convolution_bias,
        "feat_extract_norm": config.convolution_norm,
        "num_feat_extract_layers": len(KERNELS),
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.feed_forward_width,
        "do_stable_layer_norm": config.pre_norm,
        "num_conv_pos_embeddings": config.position_kernel,
        "num_conv_pos_embedding_groups": config.position_groups,
        "hidden_act": to_transformers(config.activation),
        "layer_norm_eps": config.norm_eps,
        **dict.fromkeys(("hidden_dropout", "attention_dropout", "feat_proj_dropout"), config.dropout),
        "activation_dropout": 0.0,
        "layerdrop": config.layer_drop,
    }


def tiny_models() -> tuple[Hubert.Config, ...]:
    """A small base and a small large model, of the clip length that a config without one is read with."""
    base = dataclasses.replace(Hubert.Config.tiny(), clip_samples=Hubert.Config().clip_samples)
    return (base, dataclasses.replace(base, convolution_norm="layer", convolution_bias=True, pre_norm=True))


HUBERT = CheckpointFormat(
    name="hubert",
    model_types=("hubert",),
    key_map=key_map,
    read_config=read_config,
    write_config=write_config,
    tiny=tiny_models,
)
