"""LanguageBind's video tower, CLIP's with attention over time, in the layout of its published files.

A config with `add_time_attn` is of this layout; where it says that there is none, the tower is CLIP's. The files hold the whole
dual encoder, of which the tower of media is read; alone it is written without the prefix `vision_model.`, as CLIP's is. LoRA
factors that are not merged into the weights are not read, nor the towers that fold several frames into one patch.
Source: LanguageBind, arXiv:2310.01852.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from weft.checkpoints import clip
from weft.checkpoints.checkpoint_format import CheckpointFormat
from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rules import squeeze
from weft.checkpoints.two_towers import tower_alone
from weft.core.errors import CheckpointError
from weft.encoders.clip import ClipVision
from weft.encoders.video import Video

_LAYER, _SLOT = "encoder.layers.{i}.", "image.blocks.{i}.before_attention."

VIDEO = KeyMap.join(
    clip.VISION.under(target="image."),
    KeyMap(
        [squeeze(f"{_LAYER}temporal_embedding", f"{_SLOT}embedding.table", (0,))],
        rename={
            f"{_LAYER}temporal_layer_norm1": f"{_SLOT}norm",
            f"{_LAYER}temporal_attn.q_proj": f"{_SLOT}attention.query",
            f"{_LAYER}temporal_attn.k_proj": f"{_SLOT}attention.key",
            f"{_LAYER}temporal_attn.v_proj": f"{_SLOT}attention.value",
            f"{_LAYER}temporal_attn.out_proj": f"{_SLOT}attention.output",
        },
    ),
)


def key_map(config: Video.Config | ClipVision.Config) -> KeyMap:
    """The table of a tower, which also reads the file of the whole dual encoder."""
    tower = VIDEO if isinstance(config, Video.Config) else clip.VISION
    return tower_alone(tower, "text_model.*", "text_projection.*", "visual_projection.*", "logit_scale")


def read_config(saved: Mapping[str, Any]) -> Video.Config | ClipVision.Config:
    """The tower's config. Raises: CheckpointError for a tower whose patches are cut out of several frames."""
    if (kind := saved.get("clip_type", "vl")) == "vl_new":
        raise CheckpointError(
            f"clip_type={kind!r} cuts patches out of several frames at once, which Weft's video tower does not"
        )
    image = clip.read_vision(saved)
    if not saved["add_time_attn"]:
        return image
    return Video.Config(image=image, num_frames=saved["num_frames"], temporal="attention")


def write_config(config: Video.Config) -> dict[str, Any]:
    """The published config of a tower. Raises: CheckpointError for one that this layout cannot hold."""
    image = config.image
    if not isinstance(image, ClipVision.Config) or config.temporal != "attention":
        kind = f"{image.part_name} with temporal={config.temporal!r}"
        raise CheckpointError(f"LanguageBind's layout holds a ClipVision with temporal='attention', this video tower is {kind}")
    written = clip.write_vision(image)
    return {**written, "architectures": ["LanguageBindVideo"], "add_time_attn": True, "num_frames": config.num_frames}


FORMAT = CheckpointFormat(
    name="languagebind_video",
    model_types=("clip_vision_model", "LanguageBindVideo_vision_model", "LanguageBindImage_vision_model"),
    key_map=key_map,
    read_config=read_config,
    write_config=write_config,
    tiny=lambda: (replace(Video.Config.tiny(), temporal="attention"),),
    fields=("add_time_attn",),
)
