"""The projectors of MobileVLM and MobileVLM V2 in the layout of their published files.

Source: arXiv:2312.16886 and arXiv:2402.03766; the blocks of the first are `torchvision`'s inverted residuals.
"""

from __future__ import annotations

from dataclasses import replace

from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rules import Rule, rename, shift, squeeze

_BLOCK: list[Rule] = [
    rename("0.0", "depthwise"),
    rename("0.1", "depthwise_norm"),
    squeeze("1.fc1.weight", "squeeze_excite.squeeze.weight", (2, 3)),
    rename("1.fc1.bias", "squeeze_excite.squeeze.bias"),
    squeeze("1.fc2.weight", "squeeze_excite.excite.weight", (2, 3)),
    rename("1.fc2.bias", "squeeze_excite.excite.bias"),
    rename("2.0", "pointwise"),
    rename("2.1", "pointwise_norm"),
]
_OF_THE_WHOLE_MODEL = [("model.mm_projector.", "mm_projector.")]

LDP = KeyMap(
    [
        rename("mm_projector.model.mlp.1", "up"),
        rename("mm_projector.model.mlp.3", "down"),
        *(
            replace(rule.under("mm_projector.model.mb_block.{i}.block.", "blocks.{i}."), index=shift(-1))  # 0 is nothing
            for rule in _BLOCK
        ),
    ],
    spellings=_OF_THE_WHOLE_MODEL,
)

LDPV2 = KeyMap(
    rename={
        "mm_projector.mlp.mlp.0": "up",
        "mm_projector.mlp.mlp.2": "down",
        "mm_projector.peg.peg.0": "position",
    },
    spellings=_OF_THE_WHOLE_MODEL,
)
