"""The projector of InternLM-XComposer2-4KHD in the layout of its published files. Source: arXiv:2404.06512."""

from __future__ import annotations

from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rules import rename, squeeze

XCOMPOSER2_4KHD = KeyMap(
    [
        squeeze("plora_sub_GN", "newline", (0, 1, 2)),
        squeeze("plora_glb_GN", "separator", (0, 1)),
        rename("vision_proj.0", "up"),
        rename("vision_proj.2", "down"),
    ]
)
