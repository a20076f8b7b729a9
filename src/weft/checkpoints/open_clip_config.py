"""The config that the `open_clip` library writes: `model_cfg` says what the model is, `preprocess_cfg` how it sees pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weft.checkpoints.eva_clip_timm import TIMM_SIZES
from weft.core.errors import CheckpointError

OPEN_CLIP_CONFIG = "open_clip_config.json"
TEXT_FIELDS = {"context_length", "vocab_size", "width", "heads", "layers"}


def from_open_clip(saved: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The config of a whole model in an `open_clip_config.json`.

    Raises: CheckpointError for a model that is no EVA-CLIP.
    """
    model = saved.get("model_cfg")
    model = model if isinstance(model, dict) else {}
    vision, text = model.get("vision_cfg"), model.get("text_cfg")
    if not (isinstance(vision, dict) and isinstance(text, dict) and isinstance(model.get("embed_dim"), int)):
        raise CheckpointError(f"{where} has no model_cfg with embed_dim, vision_cfg and text_cfg; download it again")
    name = vision.get("timm_model_name")
    if not isinstance(name, str) or name not in TIMM_SIZES:
        tower = f"timm's {name}" if name else "a tower of open_clip's own"
        raise CheckpointError(
            f"{where} describes {tower}; of open_clip's folders Weft reads EVA-CLIP ({', '.join(TIMM_SIZES)}), other models "
            "in transformers layout"
        )
    wanted = {"timm_pool": vision.get("timm_pool") == "token", "timm_proj": not vision.get("timm_proj")}
    odd = [f"{key}={vision.get(key)!r}" for key, fits in wanted.items() if not fits]
    odd += [f"{key}={text[key]!r}" for key in sorted(set(text) - TEXT_FIELDS)]
    if odd:
        raise CheckpointError(f"{where} has {', '.join(odd)}, which the published EVA-CLIP models do not")
    return {**model, "model_type": "eva_clip"}
