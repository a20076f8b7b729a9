"""SigLIP in the layout of the `transformers` library: the whole model and each tower alone.

A tower alone is written without the prefix `vision_model.` or `text_model.`, as version 5 does, and read with it or without
(version 4, the files on the hub).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rules import Rule, rename, split, squeeze
from weft.checkpoints.two_towers import BLOCKS, BUFFERS, block_sizes, read_block_sizes, tower_alone
from weft.core.errors import CheckpointError
from weft.encoders.siglip import SiglipText, SiglipVision
from weft.systems.dual_encoder import DualEncoder

TRUNK = KeyMap(
    rename={
        "embeddings.patch_embedding": "patch_embedding.projection",
        "embeddings.position_embedding.weight": "position_embedding",
        "post_layernorm": "final_norm",
        **BLOCKS,
    },
    drop=BUFFERS,
    spellings=[("vision_model.", "")],
)

INPUTS = ("query", "key", "value")
POOLING_HEAD: tuple[Rule, ...] = (
    squeeze("head.probe", "pooling.probe", axes=(0, 1)),
    split("head.attention.in_proj_weight", [f"pooling.{name}.weight" for name in INPUTS]),
    split("head.attention.in_proj_bias", [f"pooling.{name}.bias" for name in INPUTS]),
    rename("head.attention.out_proj", "pooling.output"),
    rename("head.layernorm", "pooling.norm"),
    rename("head.mlp.fc1", "pooling.feed_forward.up"),
    rename("head.mlp.fc2", "pooling.feed_forward.down"),
)

TEXT = KeyMap(
    rename={
        "embeddings.token_embedding": "token_embedding",
        "embeddings.position_embedding.weight": "position_embedding",
        "final_layer_norm": "final_norm",
        "head": "head",
        **BLOCKS,
    },
    drop=BUFFERS,
    spellings=[("text_model.", "")],
)


def vision_map(config: SiglipVision.Config) -> KeyMap:
    """The image tower's map; without a pooling head in the config, the file's is dropped."""
    if config.pooling_head:
        return KeyMap.join(TRUNK, KeyMap(POOLING_HEAD))
    return KeyMap.join(TRUNK, KeyMap(drop={"head.*": "the config has no pooling head, the tower serves features only"}))


def model_map(config: DualEncoder.Config) -> KeyMap:
    """The whole model's map."""
    assert isinstance(config.media, SiglipVision.Config)
    scalars = (squeeze(name, name, axes=(0,)) for name in ("logit_scale", "logit_bias"))
    return KeyMap.join(
        vision_map(config.media).under("vision_model.", "media."), TEXT.under("text_model.", "text."), KeyMap(scalars)
    )


def read_vision(saved: Mapping[str, Any]) -> SiglipVision.Config:
    """The image tower's config from a `siglip_vision_model` config."""
    if saved.get("num_channels", 3) != 3:
        raise CheckpointError(f"a SigLIP image tower takes 3 channels, the config says {saved['num_channels']}")
    default = SiglipVision.Config()
    return SiglipVision.Config(
        image_size=saved.get("image_size", default.image_size),
        patch_size=saved.get("patch_size", default.patch_size),
        pooling_head=saved.get("vision_use_head", default.pooling_head),
        **read_block_sizes(saved, default),
    )


def write_vision(config: SiglipVision.Config) -> dict[str, Any]:
    """The `siglip_vision_model` config of an image tower."""
    return {
        "architectures": ["SiglipVisionModel"],
        "model_type": "siglip_vision_model",
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "vision_use_head": config.pooling_head,
        **block_sizes(config),
    }


def read_text(saved: Mapping[str, Any]) -> SiglipText.Config:
    """The text tower's config from a `siglip_text_model` config.

    Raises: CheckpointError where the pooled vector has another width than the tower.
    """
    default = SiglipText.Config()
    sizes = read_block_sizes(saved, default)
    if saved.get("projection_size") not in (None, sizes["width"]):
        raise CheckpointError(
            f"SiglipText's pooled vector is as wide as the tower ({sizes['width']}), the config's projection_size is "
            f"{saved['projection_size']}"
        )
    return SiglipText.Config(
        vocabulary=saved.get("vocab_size", default.vocabulary),
        context=saved.get("max_position_embeddings", default.context),
        padding_token=saved.get("pad_token_id", default.padding_token),
        **sizes,
    )


def write_text(config: SiglipText.Config) -> dict[str, Any]:
    """The `siglip_text_model` config of a text tower."""
    return {
        "architectures": ["SiglipTextModel"],
        "model_type": "siglip_text_model",
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.context,
        "projection_size": config.width,
        "bos_token_id": None,
        "eos_token_id": config.padding_token,
        "pad_token_id": config.padding_token,
        **block_sizes(config),
    }


def read_model(saved: Mapping[str, Any]) -> DualEncoder.Config:
    """The whole model's config from a `siglip` config; the file's weights bring scale and bias."""
    return DualEncoder.Config(
        media=read_vision(saved.get("vision_config") or {}),
        text=read_text(saved.get("text_config") or {}),
        initial_scale=10.0,
        initial_bias=-10.0,
    )


def write_model(config: DualEncoder.Config) -> dict[str, Any]:
    """The `siglip` config of a dual encoder of SigLIP towers.

    Raises: CheckpointError for a dual encoder that SigLIP's layout cannot hold.
    """
    if not (isinstance(config.media, SiglipVision.Config) and isinstance(config.text, SiglipText.Config)):
        parts = f"{config.media.part_name} and {config.text.part_name}"
        raise CheckpointError(f"the siglip layout holds SiglipVision and SiglipText, this dual encoder has {parts}")
    if config.embedding_width is not None or config.initial_bias is None:
        raise CheckpointError(
            "the siglip layout has a logit bias and no projections: set initial_bias, leave out embedding_width"
        )
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "vision_config": write_vision(config.media),
        "text_config": write_text(config.text),
    }


def tiny_models() -> tuple[DualEncoder.Config, ...]:
    """A small whole model."""
    towers: dict[str, Any] = {"media": SiglipVision.Config.tiny(), "text": SiglipText.Config.tiny()}
    return (DualEncoder.Config(**towers, initial_scale=10.0, initial_bias=-10.0),)


def tiny_vision() -> tuple[SiglipVision.Config, ...]:
    """A small tower with its pooling head, one without, one whose patches leave a rest."""
    tiny = SiglipVision.Config.tiny()
    return (tiny, dataclasses.replace(tiny, pooling_head=False), dataclasses.replace(tiny, image_size=30, patch_size=7))


SIGLIP = CheckpointFormat(
    name="siglip",
    model_types=("siglip",),
    key_map=model_map,
    read_config=read_model,
    write_config=write_model,
    tiny=tiny_models,
)

SIGLIP_VISION = CheckpointFormat(
    name="siglip_vision",
    model_types=("siglip_vision_model",),
    key_map=lambda config: tower_alone(vision_map(config), "text_model.*", "logit_scale", "logit_bias"),
    read_config=read_vision,
    write_config=write_vision,
    tiny=tiny_vision,
)

SIGLIP_TEXT = CheckpointFormat(
    name="siglip_text",
    model_types=("siglip_text_model",),
    key_map=lambda config: tower_alone(TEXT, "vision_model.*", "logit_scale", "logit_bias"),
    read_config=read_text,
    write_config=write_text,
    tiny=lambda: (SiglipText.Config.tiny(),),
)
