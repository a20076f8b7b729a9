"""The abstractors of Honeybee in the layout of its published files.

Source: arXiv:2312.06742; C-Abstractor is made of `timm`'s RegNet stages, D-Abstractor of `transformers`' decoder layers of
Deformable DETR.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.rules import Index, Rule, read_only, rename, shift, squeeze
from weft.projectors.c_abstractor import CAbstractor
from weft.projectors.d_abstractor import DAbstractor

_CONVOLUTIONS = {"conv1": "expand", "conv2": "depthwise", "conv3": "reduce"}
_GATES = {"fc1": "squeeze", "fc2": "excite"}
_EVERY_OTHER = Index(lambda i: i // 2, lambda i: i * 2)  # activations stand between the linear layers

_DECODER_LAYER = {
    "self_attn.q_proj": "self_attention.query",
    "self_attn.k_proj": "self_attention.key",
    "self_attn.v_proj": "self_attention.value",
    "self_attn.out_proj": "self_attention.output",
    "self_attn_layer_norm": "self_attention_norm",
    "encoder_attn.sampling_offsets": "deformable_attention.offsets",
    "encoder_attn.attention_weights": "deformable_attention.weights",
    "encoder_attn.value_proj": "deformable_attention.value",
    "encoder_attn.output_proj": "deformable_attention.output",
    "encoder_attn_layer_norm": "deformable_attention_norm",
    "fc1": "feed_forward.up",
    "fc2": "feed_forward.down",
    "final_layer_norm": "feed_forward_norm",
}
_NEWER_NAMES = {
    "self_attn.o_proj": "self_attention.output",
    "mlp.fc1": "feed_forward.up",
    "mlp.fc2": "feed_forward.down",
}


def _renames(names: Mapping[str, str], source: str = "", target: str = "") -> list[Rule]:
    return [rename(source + theirs, target + ours) for theirs, ours in names.items()]


DECODER_LAYER = KeyMap([*_renames(_DECODER_LAYER), *read_only(*_renames(_NEWER_NAMES))])
"""One decoder layer of Deformable DETR: version 4 of `transformers`, which is written, and version 5."""


def c_abstractor(config: CAbstractor.Config, class_position: bool = False) -> KeyMap:
    """The table of a C-Abstractor; older files have a position for the class token in front (`class_position`)."""
    rules = [
        _position("pos_emb", config.grid_side**2, class_position),
        rename("readout.{i}", "layers.{i}", _EVERY_OTHER),
    ]
    for theirs, ours in {"net.0": "before_pooling", "net.2": "after_pooling"}.items():
        source, target = f"{theirs}.b{{i}}.", f"{ours}.{{i}}."
        stage = [rename(f"{source}{a}.conv", f"{target}{b}") for a, b in _CONVOLUTIONS.items()]
        stage += [rename(f"{source}{a}.bn", f"{target}{b}_norm") for a, b in _CONVOLUTIONS.items()]
        for a, b in _GATES.items():
            stage.append(squeeze(f"{source}se.{a}.weight", f"{target}squeeze_excite.{b}.weight", (2, 3)))
            stage.append(rename(f"{source}se.{a}.bias", f"{target}squeeze_excite.{b}.bias"))
        rules += [replace(rule, index=shift(-1)) for rule in stage]
    return KeyMap(rules).under("abstractor.")


def d_abstractor(config: DAbstractor.Config, class_position: bool = False) -> KeyMap:
    """The table of a D-Abstractor; older files have a position for the class token in front (`class_position`)."""
    return KeyMap(
        [
            _position("v_pos_emb", config.grid_side**2, class_position),
            rename("query_position_embeddings.weight", "queries"),
            squeeze("reference_points", "reference_points", (0,)),
            rename("output_proj", "output"),
            *_renames(_DECODER_LAYER, "layers.{i}.", "blocks.{i}."),
        ]
    ).under("abstractor.")


def _position(source: str, rows: int, class_position: bool) -> Rule:
    """Positions [1, rows, C] as [rows, C]; the class token's is left out, and zero on the way back."""

    def forward(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        (table,) = tensors
        if table.dim() != 3 or table.shape[:2] != (1, rows + class_position):
            raise ValueError(f"expected positions (1, {rows + class_position}, width), got {tuple(table.shape)}")
        return (table[0, int(class_position) :],)

    def backward(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        whole = tensors[0].new_zeros(1, rows + class_position, tensors[0].shape[-1])
        whole[0, int(class_position) :] = tensors[0]
        return (whole,)

    return Rule((source,), ("position",), forward, backward)
