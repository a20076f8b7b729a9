"""EVA-CLIP's vision towers under the names that the `timm` library gives them, and that library's configs of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from weft.core.errors import CheckpointError
from weft.encoders.eva_clip import EvaClipVision

TIMM_SIZES = {  # the configs of `open_clip` name a model of `timm` instead of giving sizes
    "eva_giant_patch14_224": "g-14",  # alone it is a classifier of another pooling
    "eva_giant_patch14_clip_224": "g-14",
    "eva02_base_patch16_clip_224": "b-16",
    "eva02_large_patch14_clip_224": "l-14",
    "eva02_large_patch14_clip_336": "l-14-336",
    "eva02_enormous_patch14_clip_224": "e-14",
}
TIMM_TOWERS = tuple(name for name in TIMM_SIZES if "_clip_" in name)
TIMM_ARGUMENTS = {
    "patch_size": "patch_size",
    "embed_dim": "width",
    "depth": "num_layers",
    "num_heads": "num_heads",
    "patch_drop_rate": "patch_dropout",
    "drop_path_rate": "stochastic_depth",
}


def read_timm(saved: Mapping[str, Any]) -> EvaClipVision.Config:
    """The vision tower's config from one of `timm`, whose classes are the width that pictures and texts share."""
    name, given = saved["architecture"], dict(saved.get("model_args") or {})
    size = EvaClipVision.Config.sizes()[TIMM_SIZES[name]]
    if (pooling := saved.get("global_pool", "token")) != "token":
        raise CheckpointError(f"{name} pools with {pooling!r}; EVA-CLIP's towers take the class token")
    shape = (saved.get("pretrained_cfg") or {}).get("input_size", size.unit_shape)
    side = given.pop("img_size", None) or shape[1]
    if len(shape) != 3 or shape[0] != 3 or shape[1] != shape[2] or not isinstance(side, int):
        raise CheckpointError(f"{name}: EVA-CLIP takes square pictures of 3 channels, the config has {list(shape)}, {side}")
    ratio, trained_on = given.pop("mlp_ratio", None), given.pop("ref_feat_shape", None)
    if unknown := sorted(set(given) - set(TIMM_ARGUMENTS)):
        raise CheckpointError(f"{name}: Weft's EvaClipVision has no place for model_args {', '.join(unknown)}")
    fields: dict[str, Any] = {"patch_dropout": 0.0, "stochastic_depth": 0.0}
    fields |= {TIMM_ARGUMENTS[key]: value for key, value in given.items()}
    if ratio is not None:
        fields["feed_forward_width"] = int(fields.get("width", size.width) * ratio)
    if trained_on is not None and size.rotary_side is not None:
        fields["rotary_side"] = trained_on[0] if isinstance(trained_on, list) else trained_on
    return dataclasses.replace(size, image_size=side, embedding_width=saved.get("num_classes") or None, **fields)
