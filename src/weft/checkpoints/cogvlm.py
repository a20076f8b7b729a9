"""CogVLM in the layout of its published files.

Their config has no `model_type` and is known by its class. Source: `CogVLMForCausalLM`, CogVLM, arXiv:2311.03079.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rules import split, squeeze
from weft.core.errors import CheckpointError
from weft.encoders.eva_clip import EvaClipVision
from weft.fusion.token_concatenation import TokenConcatenation
from weft.fusion.visual_expert import VisualExpert
from weft.language_models.decoder import Decoder
from weft.projectors.glu import GLU
from weft.systems.multimodal_lm import MultimodalLM, Stream

STREAM = "image"
FUSIONS = (TokenConcatenation.Config(shared_positions=True), VisualExpert.Config(attention=True, closing="text"))

_LAYER, _BLOCK = "model.layers.{i}.", "language_model.blocks.{i}."
_EXPERTS = {"language": "", "vision": "routes.visual."}
_INPUTS = ("query", "key", "value")
_TOWER, _ENCODER, _PROJECTOR = "model.vision.", f"streams.{STREAM}.encoder.", f"streams.{STREAM}.projector."
_VISION_BLOCK = (f"{_TOWER}transformer.layers.{{i}}.", f"{_ENCODER}blocks.{{i}}.")


def _language() -> KeyMap:
    rules = [
        split(
            f"{_LAYER}self_attn.{theirs}_expert_query_key_value.weight",
            [f"{_BLOCK}attention.{ours}{name}.weight" for name in _INPUTS],
        )
        for theirs, ours in _EXPERTS.items()
    ]
    rename = {
        "model.embed_tokens": "language_model.embedding",
        "model.norm": "language_model.final_norm",
        "lm_head": "language_model.output",
        f"{_LAYER}input_layernorm": f"{_BLOCK}attention_norm",
        f"{_LAYER}post_attention_layernorm": f"{_BLOCK}feed_forward_norm",
    }
    for theirs, ours in _EXPERTS.items():
        rename[f"{_LAYER}self_attn.{theirs}_expert_dense"] = f"{_BLOCK}attention.{ours}output"
        for name in ("gate", "up", "down"):
            rename[f"{_LAYER}mlp.{theirs}_mlp.{name}_proj"] = f"{_BLOCK}feed_forward.{ours}{name}"
    return KeyMap(rules, rename=rename, drop={f"{_LAYER}self_attn.rotary_emb.inv_freq": "buffer, rebuilt from the config"})


def _vision() -> KeyMap:
    theirs, ours = _VISION_BLOCK
    fused = [
        split(f"{theirs}attention.query_key_value.{leaf}", [f"{ours}attention.{name}.{leaf}" for name in _INPUTS])
        for leaf in ("weight", "bias")
    ]
    return KeyMap(
        [
            *fused,
            squeeze(f"{_TOWER}patch_embedding.cls_embedding", f"{_ENCODER}class_embedding", axes=(0,)),
            squeeze(f"{_TOWER}boi", f"{_PROJECTOR}opening", axes=(0, 1)),
            squeeze(f"{_TOWER}eoi", f"{_PROJECTOR}closing", axes=(0, 1)),
        ],
        rename={
            f"{_TOWER}patch_embedding.proj": f"{_ENCODER}patch_embedding.projection",
            f"{_TOWER}patch_embedding.position_embedding.weight": f"{_ENCODER}position_embedding",
            f"{theirs}input_layernorm": f"{ours}attention_norm",
            f"{theirs}post_attention_layernorm": f"{ours}feed_forward_norm",
            f"{theirs}attention.dense": f"{ours}attention.output",
            f"{theirs}mlp.fc1": f"{ours}feed_forward.up",
            f"{theirs}mlp.fc2": f"{ours}feed_forward.down",
            f"{_TOWER}linear_proj.linear_proj": f"{_PROJECTOR}input",
            f"{_TOWER}linear_proj.norm1": f"{_PROJECTOR}norm",
            f"{_TOWER}linear_proj.gate_proj": f"{_PROJECTOR}feed_forward.gate",
            f"{_TOWER}linear_proj.dense_h_to_4h": f"{_PROJECTOR}feed_forward.up",
            f"{_TOWER}linear_proj.dense_4h_to_h": f"{_PROJECTOR}feed_forward.down",
        },
    )


COGVLM = KeyMap.join(_language(), _vision())


def read_config(config: Mapping[str, Any], where: str = "config.json") -> MultimodalLM.Config:
    """The system that a CogVLM config describes; the projector's gate has the language model's width.

    Raises: CheckpointError for what CogVLM does not have.
    """
    vision = config.get("vision_config") or {}
    side = vision.get("image_size", 490) // vision.get("patch_size", 14)
    wanted = {
        "hidden_act": config.get("hidden_act", "silu") == "silu",
        "num_multi_query_heads": "num_multi_query_heads" not in config,
        "vision_config.hidden_act": vision.get("hidden_act", "gelu") == "gelu",
        "vision_config.num_positions": vision.get("num_positions", side**2 + 1) == side**2 + 1,
    }
    if unfit := [name for name, fits in wanted.items() if not fits]:
        raise CheckpointError(f"{where}: {', '.join(unfit)} is not as CogVLM has it (CogVLM2 is another layout)")
    width = config.get("hidden_size", 4096)
    heads = config.get("num_attention_heads", 32)
    gate = config.get("intermediate_size", 11_008)
    encoder = EvaClipVision.Config(
        image_size=vision.get("image_size", 490),
        patch_size=vision.get("patch_size", 14),
        width=vision.get("hidden_size", 1792),
        num_layers=vision.get("num_hidden_layers", 63),
        num_heads=vision.get("num_heads", 16),
        feed_forward_width=vision.get("intermediate_size", 15_360),
        block="residual_post_norm",
        key_bias=True,
        embedding_width=None,
        feature_layer=-1,
        norm_eps=vision.get("layer_norm_eps", 1e-6),
    )
    decoder = Decoder.Config(
        vocabulary=config.get("vocab_size", 32_000),
        width=width,
        num_layers=config.get("num_hidden_layers", 32),
        num_heads=heads,
        num_key_value_heads=heads,
        feed_forward_width=gate,
        context=config.get("max_position_embeddings", 2048),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        tied_head=config.get("tie_word_embeddings", False),
    )
    return MultimodalLM.Config(
        language_model=decoder,
        streams={STREAM: Stream.Config(encoder=encoder, projector=GLU.Config(feed_forward_width=gate))},
        fusions=FUSIONS,
    )


def write_config(config: MultimodalLM.Config) -> dict[str, Any]:
    """The published config of a system.

    Raises: CheckpointError for a system that is not CogVLM's.
    """
    stream, decoder = config.streams.get(STREAM), config.language_model
    encoder = None if stream is None else stream.encoder
    refused = CheckpointError(
        f"the CogVLM layout holds one stream {STREAM!r} of an EVA-CLIP-E tower without head and a GLU as wide as the language "
        "model's gate, a Llama-type Decoder, and the fusions TokenConcatenation with shared positions and VisualExpert with "
        "attention that closes as text; this system has other parts"
    )
    if not isinstance(encoder, EvaClipVision.Config) or not isinstance(decoder, Decoder.Config):
        raise refused
    saved = {
        "architectures": ["CogVLMForCausalLM"],
        "vocab_size": decoder.vocabulary,
        "hidden_size": decoder.width,
        "intermediate_size": decoder.feed_forward_width,
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": decoder.num_heads,
        "hidden_act": "silu",
        "max_position_embeddings": decoder.context,
        "rms_norm_eps": decoder.norm_eps,
        "tie_word_embeddings": decoder.tied_head,
        "template_version": "chat",
        "vision_config": {
            "in_channels": 3,
            "image_size": encoder.image_size,
            "patch_size": encoder.patch_size,
            "num_positions": (encoder.image_size // encoder.patch_size) ** 2 + 1,
            "hidden_size": encoder.width,
            "num_hidden_layers": encoder.num_layers,
            "num_heads": encoder.num_heads,
            "intermediate_size": encoder.feed_forward_width,
            "hidden_act": "gelu",
            "layer_norm_eps": encoder.norm_eps,
        },
    }
    if read_config(saved) != config:
        raise refused
    return saved


def _tiny() -> tuple[MultimodalLM.Config, ...]:
    encoder = replace(
        EvaClipVision.Config.tiny(), block="residual_post_norm", rotary_side=None, key_bias=True, embedding_width=None,
        feature_layer=-1, feed_forward_width=80,
    )  # fmt: skip
    decoder = replace(Decoder.Config.tiny(), num_key_value_heads=4)
    stream = Stream.Config(encoder=encoder, projector=GLU.Config(feed_forward_width=decoder.feed_forward_width))
    return (MultimodalLM.Config(language_model=decoder, streams={STREAM: stream}, fusions=FUSIONS),)


FORMAT = CheckpointFormat(
    name="cogvlm",
    model_types=("CogVLMForCausalLM",),
    key_map=lambda config: COGVLM,
    read_config=read_config,
    write_config=write_config,
    tiny=_tiny,
)
