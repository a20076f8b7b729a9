"""CLIP in the layout of the `transformers` library: the whole model and each tower alone.

A tower alone is written without the prefix `vision_model.` or `text_model.`, as version 5 does, and read with it or without
(version 4, the files on the hub).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.two_towers import BLOCKS, BUFFERS, block_sizes, read_block_sizes, tower_alone
from weft.core.errors import CheckpointError
from weft.encoders.clip import ClipText, ClipVision
from weft.systems.dual_encoder import DualEncoder

VISION = KeyMap(
    rename={
        "embeddings.class_embedding": "class_embedding",
        "embeddings.patch_embedding": "patch_embedding.projection",
        "embeddings.position_embedding.weight": "position_embedding",
        "pre_layrnorm": "input_norm",  # the misspelling is the published name
        "post_layernorm": "final_norm",
        **BLOCKS,
    },
    drop=BUFFERS,
    spellings=[("vision_model.", "")],
)

TEXT = KeyMap(
    rename={
        "embeddings.token_embedding": "token_embedding",
        "embeddings.position_embedding": "position_embedding",
        "final_layer_norm": "final_norm",
        **BLOCKS,
    },
    drop=BUFFERS,
    spellings=[("text_model.", "")],
)

MODEL = KeyMap.join(
    VISION.under("vision_model.", "media."),
    TEXT.under("text_model.", "text."),
    KeyMap(
        rename={
            "visual_projection.weight": "media_projection.weight",
            "text_projection.weight": "text_projection.weight",
            "logit_scale": "logit_scale",
        }
    ),
)


def read_vision(saved: Mapping[str, Any]) -> ClipVision.Config:
    """The image tower's config from a `clip_vision_model` config."""
    if saved.get("num_channels", 3) != 3:
        raise CheckpointError(f"a CLIP image tower takes 3 channels, the config says {saved['num_channels']}")
    default = ClipVision.Config()
    return ClipVision.Config(
        image_size=saved.get("image_size", default.image_size),
        patch_size=saved.get("patch_size", default.patch_size),
        **read_block_sizes(saved, default),
    )


def write_vision(config: ClipVision.Config) -> dict[str, Any]:
    """The `clip_vision_model` config of an image tower."""
    return {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        **block_sizes(config),
    }


def read_text(saved: Mapping[str, Any]) -> ClipText.Config:
    """The text tower's config from a `clip_text_model` config."""
    default = ClipText.Config()
    vocabulary = saved.get("vocab_size", default.vocabulary)
    end = saved.get("eos_token_id", default.vocabulary - 1)
    # files older than the field say 2 and mean the highest token id
    return ClipText.Config(
        vocabulary=vocabulary,
        context=saved.get("max_position_embeddings", default.context),
        end_token=None if end in (2, vocabulary - 1) else end,
        **read_block_sizes(saved, default),
    )


def write_text(config: ClipText.Config) -> dict[str, Any]:
    """The `clip_text_model` config of a text tower."""
    end = config.vocabulary - 1 if config.end_token is None else config.end_token
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.context,
        "bos_token_id": max(end - 1, 0),
        "eos_token_id": end,
        "pad_token_id": end,
        **block_sizes(config),
    }


PUBLISHED_SCALE = 2.6592  # how the published config rounds ln(1 / 0.07)


def read_model(saved: Mapping[str, Any]) -> DualEncoder.Config:
    """The whole model's config from a `clip` config."""
    scale = saved.get("logit_scale_init_value", PUBLISHED_SCALE)
    return DualEncoder.Config(
        media=read_vision(saved.get("vision_config") or {}),
        text=read_text(saved.get("text_config") or {}),
        embedding_width=saved.get("projection_dim", 512),
        initial_scale=1 / 0.07 if scale == PUBLISHED_SCALE else math.exp(scale),
    )


def write_model(config: DualEncoder.Config) -> dict[str, Any]:
    """The `clip` config of a dual encoder of CLIP towers.

    Raises: CheckpointError for a dual encoder that CLIP's layout cannot hold.
    """
    if not (isinstance(config.media, ClipVision.Config) and isinstance(config.text, ClipText.Config)):
        parts = f"{config.media.part_name} and {config.text.part_name}"
        raise CheckpointError(f"the clip layout holds ClipVision and ClipText, this dual encoder has {parts}")
    both = config.embedding_width is not None and set(config.projected) == {"media", "text"}
    if not both or config.initial_bias is not None:
        raise CheckpointError(
            "the clip layout holds two projections and no logit bias; set embedding_width, leave initial_bias out"
        )
    width = {"projection_dim": config.embedding_width}
    published = config.initial_scale == 1 / 0.07
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "vision_config": {**write_vision(config.media), **width},
        "text_config": {**write_text(config.text), **width},
        "logit_scale_init_value": PUBLISHED_SCALE if published else math.log(config.initial_scale),
        **width,
    }


def tiny_models() -> tuple[DualEncoder.Config, ...]:
    """A small whole model, its embedding narrower than the towers."""
    return (DualEncoder.Config(media=ClipVision.Config.tiny(), text=ClipText.Config.tiny(), embedding_width=24),)


CLIP = CheckpointFormat(
    name="clip",
    model_types=("clip",),
    key_map=lambda config: MODEL,
    read_config=read_model,
    write_config=write_model,
    tiny=tiny_models,
)

CLIP_VISION = CheckpointFormat(
    name="clip_vision",
    model_types=("clip_vision_model",),
    key_map=lambda config: tower_alone(VISION, "text_model.*", "text_projection.*", "visual_projection.*", "logit_scale"),
    read_config=read_vision,
    write_config=write_vision,
    tiny=lambda: (ClipVision.Config.tiny(), dataclasses.replace(ClipVision.Config.tiny(), image_size=30, patch_size=7)),
)

CLIP_TEXT = CheckpointFormat(
    name="clip_text",
    model_types=("clip_text_model",),
    key_map=lambda config: tower_alone(TEXT, "vision_model.*", "text_projection.*", "visual_projection.*", "logit_scale"),
    read_config=read_text,
    write_config=write_text,
    tiny=lambda: (ClipText.Config.tiny(),),
)
