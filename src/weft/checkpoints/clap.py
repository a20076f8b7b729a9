"""LAION's CLAP in the layout of the `transformers` library: the whole model and each tower, with its projection or without.

Microsoft's system of the same name is in `clap_microsoft`. A tower with its projection is written as the library's
`...WithProjection` classes write it; a tower without one is read from their files too, and either from that of the whole model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from weft.checkpoints.bert_text import bert_map, read_sizes, write_sizes
from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.two_towers import tower_alone
from weft.core.errors import CheckpointError
from weft.encoders.bert_text import BertText
from weft.encoders.clap_laion import ClapLaionWrapper
from weft.systems.dual_encoder import DualEncoder

LINEARS = {"linear1": "first", "linear2": "second"}
AUDIO = KeyMap(rename={"audio_encoder.*": "tower.*"})  # the wrapped tower has the library's own names


def head_map(name: str) -> KeyMap:
    """A projection that the file keeps beside its tower."""
    return KeyMap(rename={f"{name}.{theirs}": f"head.{ours}" for theirs, ours in LINEARS.items()})


def audio_map(config: ClapLaionWrapper.Config) -> KeyMap:
    """The audio tower alone."""
    others = ("text_model.*", "text_projection.*", "logit_scale_*")
    if config.embedding_width is not None:
        return tower_alone(KeyMap.join(AUDIO.under("audio_model."), head_map("audio_projection")), *others)
    return KeyMap.join(tower_alone(AUDIO, *others, "audio_projection.*"), spellings=[("audio_model.", "")])


def text_map(config: BertText.Config) -> KeyMap:
    """The text tower alone."""
    others = ("audio_model.*", "audio_projection.*", "logit_scale_*")
    if config.embedding_width is not None:
        return tower_alone(KeyMap.join(bert_map(config).under("text_model."), head_map("text_projection")), *others)
    return KeyMap.join(tower_alone(bert_map(config), *others, "text_projection.*"), spellings=[("text_model.", "")])


def model_map(config: DualEncoder.Config) -> KeyMap:
    """The whole model."""
    assert isinstance(config.text, BertText.Config)
    return KeyMap.join(
        AUDIO.under("audio_model.", "media."),
        head_map("audio_projection").under(target="media."),
        bert_map(config.text).under("text_model.", "text."),
        head_map("text_projection").under(target="text."),
        KeyMap(rename={"logit_scale_a": "logit_scale", "logit_scale_t": "text_logit_scale"}),
    )


USUAL = {
    "flatten_patch_embeds": True, "enable_patch_layer_norm": True, "qkv_bias": True, "patch_embed_input_channels": 1,
    "hidden_act": "gelu", "projection_hidden_act": "relu", "aff_block_r": 4,
}  # fmt: skip
FUSION = "aff_2d"


def _check(saved: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
    if odd := [f"{name}={saved[name]!r}" for name, value in usual.items() if saved.get(name, value) != value]:
        raise CheckpointError(f"the config has {', '.join(odd)}; CLAP's published files have {dict(usual)}")


def _projection(saved: Mapping[str, Any], width: int) -> int | None:
    """The width of the head that a tower's own config promises by the class that wrote it."""
    projected = any("WithProjection" in name for name in saved.get("architectures") or ())
    return saved.get("projection_dim", width) if projected else None


def read_audio(saved: Mapping[str, Any]) -> ClapLaionWrapper.Config:
    """The audio tower's config from a `clap_audio_model` config, which does not say how long a clip is: as long as published
    where it fits.

    Raises: CheckpointError for a variant that Weft does not build.
    """
    default = ClapLaionWrapper.Config()
    patch = saved.get("patch_size", default.patch_size)
    _check(saved, USUAL)
    _check({"patch_stride": list(saved.get("patch_stride", (patch, patch)))}, {"patch_stride": [patch, patch]})
    fused = bool(saved.get("enable_fusion", False))
    if fused:
        _check({"fusion_type": saved.get("fusion_type") or FUSION}, {"fusion_type": FUSION})
    bands, side = saved.get("num_mel_bins", default.num_mels), saved.get("spec_size", default.spec_size)
    config = ClapLaionWrapper.Config(
        num_mels=bands,
        num_frames=min(default.num_frames, side * (side // bands)),
        spec_size=side,
        patch_size=patch,
        window_size=saved.get("window_size", default.window_size),
        width=saved.get("patch_embeds_hidden_size", default.width),
        depths=tuple(saved.get("depths", default.depths)),
        num_heads=tuple(saved.get("num_attention_heads", default.num_heads)),
        feed_forward_ratio=saved.get("mlp_ratio", default.feed_forward_ratio),
        embedding_width=_projection(saved, 512),
        norm_eps=saved.get("layer_norm_eps", default.norm_eps),
        fused=fused,
        dropout=saved.get("hidden_dropout_prob", 0.1),  # what the library takes where a file leaves them out
        stochastic_depth=saved.get("drop_path_rate", 0.0),
    )
    _check({"hidden_size": saved.get("hidden_size", 768)}, {"hidden_size": config.output_width})
    return config


def write_audio(config: ClapLaionWrapper.Config) -> dict[str, Any]:
    """The `clap_audio_model` config of an audio tower."""
    _check_head(config)
    return {
        "architectures": ["ClapAudioModel" if config.embedding_width is None else "ClapAudioModelWithProjection"],
        "model_type": "clap_audio_model",
        "num_mel_bins": config.num_mels,
        "spec_size": config.spec_size,
        "patch_size": config.patch_size,
        "patch_stride": [config.patch_size, config.patch_size],
        "window_size": config.window_size,
        "patch_embeds_hidden_size": config.width,
        "hidden_size": config.output_width,
        "depths": list(config.depths),
        "num_hidden_layers": len(config.depths),
        "num_attention_heads": list(config.num_heads),
        "mlp_ratio": config.feed_forward_ratio,
        "layer_norm_eps": config.norm_eps,
        "enable_fusion": config.fused,
        "fusion_type": FUSION if config.fused else None,
        "hidden_dropout_prob": config.dropout,
        "drop_path_rate": config.stochastic_depth,
        **({} if config.embedding_width is None else {"projection_dim": config.embedding_width}),
    }


def _check_head(config: ClapLaionWrapper.Config | BertText.Config) -> None:
    if config.embedding_width is not None and config.head != "two_layer":
        raise CheckpointError(f"the clap layout holds a head of two layers, {config.part_name} has a {config.head!r} one")


def read_text(saved: Mapping[str, Any]) -> BertText.Config:
    """The text tower's config from a `clap_text_model` config."""
    default = BertText.Config.sizes()["clap-laion"]
    _check(saved, {"projection_hidden_act": "relu"})
    padding = saved.get("pad_token_id", default.first_position - 1)  # positions count from behind the padding token's id
    return BertText.Config(**read_sizes(saved, default, padding + 1), embedding_width=_projection(saved, 512))


def write_text(config: BertText.Config) -> dict[str, Any]:
    """The `clap_text_model` config of a text tower.

    Raises: CheckpointError for a tower that the layout cannot hold.
    """
    _check_head(config)
    if not config.pooler or config.first_position < 1:
        raise CheckpointError(
            "the clap layout holds RoBERTa with a pooler, whose positions count from behind the padding token; "
            f"this one has pooler={config.pooler}, first_position={config.first_position}"
        )
    return {
        "architectures": ["ClapTextModel" if config.embedding_width is None else "ClapTextModelWithProjection"],
        "model_type": "clap_text_model",
        "pad_token_id": config.first_position - 1,
        **write_sizes(config),
        **({} if config.embedding_width is None else {"projection_dim": config.embedding_width}),
    }


def read_model(saved: Mapping[str, Any]) -> DualEncoder.Config:
    """The whole model's config from a `clap` config."""
    width = saved.get("projection_dim", 512)
    _check(saved, {"projection_hidden_act": "relu"})
    return DualEncoder.Config(
        media=dataclasses.replace(read_audio(saved.get("audio_config") or {}), embedding_width=width),
        text=dataclasses.replace(read_text(saved.get("text_config") or {}), embedding_width=width),
        initial_scale=saved.get("logit_scale_init_value", 1 / 0.07),
        scale_per_direction=True,
        stream="audio",
    )


def write_model(config: DualEncoder.Config) -> dict[str, Any]:
    """The `clap` config of a dual encoder of LAION's towers.

    Raises: CheckpointError for a dual encoder that the layout cannot hold.
    """
    if not (isinstance(config.media, ClapLaionWrapper.Config) and isinstance(config.text, BertText.Config)):
        parts = f"{config.media.part_name} and {config.text.part_name}"
        raise CheckpointError(f"the clap layout holds ClapLaionWrapper and BertText, this dual encoder has {parts}")
    width = config.media.embedding_width
    if width is None or config.embedding_width is not None or not config.scale_per_direction or config.initial_bias is not None:
        raise CheckpointError(
            "the clap layout holds towers with heads of their own and a scale per direction without a bias; set the towers' "
            "embedding_width and scale_per_direction, leave the system's embedding_width and initial_bias out"
        )
    return {
        "architectures": ["ClapModel"],
        "model_type": "clap",
        "audio_config": write_audio(config.media),
        "text_config": write_text(config.text),
        "projection_dim": width,
        "logit_scale_init_value": config.initial_scale,
    }


def _tiny_audio(fused: bool = False) -> ClapLaionWrapper.Config:
    # as many frames as fit: what a config is read with
    return dataclasses.replace(ClapLaionWrapper.Config.tiny(), num_frames=64, fused=fused)


def _tiny_text() -> BertText.Config:
    return dataclasses.replace(BertText.Config.tiny(), first_position=2, num_text_types=1, embedding_width=24)


CLAP = CheckpointFormat(
    name="clap",
    model_types=("clap",),
    key_map=model_map,
    read_config=read_model,
    write_config=write_model,
    tiny=lambda: tuple(
        DualEncoder.Config(media=_tiny_audio(fused), text=_tiny_text(), scale_per_direction=True, stream="audio")
        for fused in (False, True)
    ),
)

CLAP_AUDIO = CheckpointFormat(
    name="clap_audio",
    model_types=("clap_audio_model",),
    key_map=audio_map,
    read_config=read_audio,
    write_config=write_audio,
    tiny=lambda: (_tiny_audio(), dataclasses.replace(_tiny_audio(), embedding_width=None), _tiny_audio(fused=True)),
)

CLAP_TEXT = CheckpointFormat(
    name="clap_text",
    model_types=("clap_text_model",),
    key_map=text_map,
    read_config=read_text,
    write_config=write_text,
    tiny=lambda: (_tiny_text(), dataclasses.replace(_tiny_text(), embedding_width=None)),
)
