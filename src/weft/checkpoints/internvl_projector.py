"""Projectors that put neighbours on channels, in the layouts of their published files: InternVL's and VILA's.

Source: InternVL 1.5, arXiv:2404.16821; VILA, arXiv:2312.07533.
"""

from __future__ import annotations

from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rules import read_only, rename

INTERNVL = KeyMap(
    [
        rename("multi_modal_projector.layer_norm", "norm"),
        rename("multi_modal_projector.linear_1", "up"),
        rename("multi_modal_projector.linear_2", "down"),
        *read_only(rename("mlp1.0", "norm"), rename("mlp1.1", "up"), rename("mlp1.3", "down")),
    ],
    spellings=[("model.multi_modal_projector.", "multi_modal_projector.")],
)
"""`transformers`' names, which are written; `mlp1` is how the first published files call the same."""

VILA = KeyMap(
    rename={"layers.1": "norm", "layers.2": "up", "layers.4": "down"},
    spellings=[("model.mm_projector.", ""), ("mm_projector.", "")],
)
