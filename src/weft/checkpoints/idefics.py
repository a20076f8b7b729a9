"""IDEFICS in `transformers` layout: CLIP's image tower, the resampler, LLaMA with gated blocks, and the tokens added to it.

Source: `IdeficsForVisionText2Text`; IDEFICS, arXiv:2306.16527.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from weft.checkpoints import clip, gated_cross_attention, llama, perceiver
from weft.checkpoints.activation_names import from_transformers, to_transformers
from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rules import Index
from weft.core.errors import CheckpointError
from weft.encoders.clip import ClipVision
from weft.fusion.cross_attention import CrossAttention, GatedSwiGLU
from weft.language_models.decoder import Decoder
from weft.layers.added_tokens import AddedTokens
from weft.projectors.perceiver import Perceiver
from weft.systems.multimodal_lm import MultimodalLM, Stream

STREAM = "image"
_BLOCKS = "model.gated_cross_attn_layers.{i}."


def key_map(config: MultimodalLM.Config) -> KeyMap:
    """The table of a system; its gated blocks are counted on their own in the file and by the layers behind them here."""
    (fusion,) = config.fusions
    assert isinstance(fusion, CrossAttention.Config) and isinstance(fusion.block, GatedSwiGLU)
    every = fusion.every
    place = Index(lambda number: number * every, lambda layer: layer // every)
    gated = gated_cross_attention.idefics(fusion.block.gates).under(_BLOCKS, "language_model.blocks.{i}.before_attention.")
    return KeyMap.join(
        clip.VISION.under("model.vision_model.", f"streams.{STREAM}.encoder."),
        perceiver.IDEFICS.under("model.perceiver_resampler.", f"streams.{STREAM}.projector."),
        llama.LLAMA.under(target="language_model."),
        KeyMap(
            (replace(rule, index=place) for rule in gated.rules),
            rename={
                "model.embed_tokens.additional_embedding": "added_tokens.inputs",
                "lm_head.additional_fc": "added_tokens.outputs",
            },
            drop={f"{_BLOCKS}cross_attn.rotary_emb.inv_freq": "buffer of positions that cross-attention does not use"},
        ),
    )


def read_config(config: Mapping[str, Any], where: str = "config.json") -> MultimodalLM.Config:
    """The system that a `transformers` IDEFICS config describes.

    Raises: CheckpointError naming what Weft's IDEFICS does not have.
    """
    c: dict[str, Any] = {"cross_layer_interval": 1, "alpha_type": "float", "additional_vocab_size": 0, **config}
    vision, resampler = c.get("vision_config") or {}, c.get("perceiver_config") or {}
    wanted = {
        "use_resampler": c.get("use_resampler", False),
        "additional_vocab_size": c["additional_vocab_size"] > 0,
        "alpha_type": c["alpha_type"] in ("float", "vector"),
    }
    if unfit := [f"{name}={c.get(name)!r}" for name, fits in wanted.items() if not fits]:
        raise CheckpointError(f"{where} asks for {', '.join(unfit)}, which Weft's IDEFICS layout does not have")
    decoder = llama.read_config({**c, "model_type": "llama", "num_key_value_heads": None}, where)
    encoder = ClipVision.Config(
        image_size=vision.get("image_size", 224),
        patch_size=vision.get("patch_size", 14),
        width=vision.get("embed_dim", 768),
        num_layers=vision.get("num_hidden_layers", 32),
        num_heads=vision.get("num_attention_heads", 16),
        feed_forward_width=vision.get("intermediate_size", 5120),
        activation=from_transformers(vision.get("hidden_act", "gelu")),
        norm_eps=vision.get("layer_norm_eps", 1e-5),
        feature_layer=-1,
        keep_class_token=True,
    )
    latents = Perceiver.Config(
        num_latents=resampler.get("resampler_n_latents", 64),
        num_layers=resampler.get("resampler_depth", 6),
        num_heads=resampler.get("resampler_n_heads", 16),
        head_width=resampler.get("resampler_head_dim", 96),
        activation="relu",
        head_norms=resampler.get("qk_layer_norms_perceiver", False),
    )
    gates: Literal["scalar", "vector"] = "vector" if c["alpha_type"] == "vector" else "scalar"
    added = c["additional_vocab_size"]
    return MultimodalLM.Config(
        language_model=decoder,
        streams={STREAM: Stream.Config(encoder=encoder, projector=latents)},
        fusions=(fusion(c["cross_layer_interval"], encoder.width, gates, c.get("qk_layer_norms", False)),),
        added_tokens=AddedTokens.Config(num_inputs=added, num_outputs=added, tied=decoder.tied_head),
    )


def fusion(every: int, width: int, gates: Literal["scalar", "vector"], head_norms: bool = True) -> CrossAttention.Config:
    """The gated blocks of IDEFICS, which read media tokens of the encoder's `width`."""
    return CrossAttention.Config(
        streams=(STREAM,),
        block=GatedSwiGLU(gates=gates, head_norms=head_norms),
        every=every,
        visibility="preceding_in_document",
        memory_width=width,
    )


def write_config(config: MultimodalLM.Config) -> dict[str, Any]:
    """The `transformers` config of a system.

    Raises: CheckpointError for a system that is not of IDEFICS' parts.
    """
    decoder, encoder, latents, fused, added = _parts(config)
    assert isinstance(fused.block, GatedSwiGLU)
    unknown = ("num_key_value_heads", "head_dim", "attention_bias", "rope_scaling", "rope_theta")
    return {
        **{name: value for name, value in llama.write_config(decoder).items() if name not in unknown},
        "architectures": ["IdeficsForVisionText2Text"],
        "model_type": "idefics",
        "additional_vocab_size": added.num_inputs,
        "alpha_initializer": "zeros",
        "alpha_type": "vector" if fused.block.gates == "vector" else "float",
        "cross_layer_interval": fused.every,
        "qk_layer_norms": fused.block.head_norms,
        "use_resampler": True,
        "vision_config": {
            "embed_dim": encoder.width,
            "image_size": encoder.image_size,
            "patch_size": encoder.patch_size,
            "num_hidden_layers": encoder.num_layers,
            "num_attention_heads": encoder.num_heads,
            "intermediate_size": encoder.feed_forward_width,
            "hidden_act": to_transformers(encoder.activation),
            "layer_norm_eps": encoder.norm_eps,
        },
        "perceiver_config": {
            "use_resampler": True,
            "resampler_n_latents": latents.num_latents,
            "resampler_depth": latents.num_layers,
            "resampler_n_heads": latents.num_heads,
            "resampler_head_dim": latents.head_width,
            "qk_layer_norms_perceiver": latents.head_norms,
        },
    }


def _parts(
    config: MultimodalLM.Config,
) -> tuple[Decoder.Config, ClipVision.Config, Perceiver.Config, CrossAttention.Config, AddedTokens.Config]:
    """The parts of a system that this layout can hold. Raises: CheckpointError naming the first that it cannot."""
    stream = config.streams.get(STREAM)
    fused = config.fusions[0] if len(config.fusions) == 1 else None
    decoder, added = config.language_model, config.added_tokens
    encoder, latents = (stream.encoder, stream.projector) if stream is not None else (None, None)
    if (
        isinstance(decoder, Decoder.Config)
        and isinstance(encoder, ClipVision.Config)
        and isinstance(latents, Perceiver.Config)
        and isinstance(fused, CrossAttention.Config)
        and isinstance(fused.block, GatedSwiGLU)
        and isinstance(added, AddedTokens.Config)
        and fused == fusion(fused.every, encoder.width, fused.block.gates, fused.block.head_norms)
        and decoder.num_key_value_heads == decoder.num_heads
        and (encoder.feature_layer, encoder.keep_class_token) == (-1, True)
        and replace(
            Perceiver.Config(activation="relu"),
            num_latents=latents.num_latents,
            num_layers=latents.num_layers,
            num_heads=latents.num_heads,
            head_width=latents.head_width,
            head_norms=latents.head_norms,
        )
        == latents
        and added.num_inputs == added.num_outputs
        and added.tied == decoder.tied_head
    ):
        return decoder, encoder, latents, fused, added
    raise CheckpointError(
        "the IDEFICS layout holds a decoder with as many heads of keys as of queries, all of CLIP's last layer, a Perceiver of "
        "its width with ReLU, IDEFICS' gated blocks and added tokens that are read and said; this system is something else"
    )


def _tiny() -> tuple[MultimodalLM.Config, ...]:
    decoder = replace(Decoder.Config.tiny(), num_key_value_heads=4)
    encoder = replace(ClipVision.Config.tiny(), feature_layer=-1, keep_class_token=True)
    latents = Perceiver.Config(num_latents=4, num_layers=1, num_heads=2, head_width=8, activation="relu")
    one = MultimodalLM.Config(
        language_model=decoder,
        streams={STREAM: Stream.Config(encoder=encoder, projector=latents)},
        fusions=(fusion(2, encoder.width, "scalar"),),
        added_tokens=AddedTokens.Config(),
    )
    normed = {STREAM: Stream.Config(encoder=encoder, projector=replace(latents, head_norms=True))}
    return (
        one,
        replace(
            one,
            language_model=replace(decoder, tied_head=True),
            streams=normed,
            fusions=(fusion(1, encoder.width, "vector", head_norms=False),),
            added_tokens=AddedTokens.Config(num_inputs=3, num_outputs=3, tied=True),
        ),
    )


FORMAT = CheckpointFormat(
    name="idefics",
    model_types=("idefics",),
    key_map=key_map,
    read_config=read_config,
    write_config=write_config,
    tiny=_tiny,
)
