"""LAVIS' files of BLIP-2 and InstructBLIP, which state no sizes: they are told from the tensors' shapes.

A file holds what was trained, and may leave out the image tower, whose own file (`eva_vit_g.pth`) has one block more. It never
holds a language model. Source: BLIP-2, arXiv:2301.12597; InstructBLIP, arXiv:2305.06500, and their published code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from weft.checkpoints import blip_2_vision
from weft.core.errors import CheckpointError
from weft.encoders.eva_clip import EvaClipVision
from weft.projectors.qformer import QFormer

Shapes = Mapping[str, Sequence[int]]
TOWER = "visual_encoder."
FIRST_STAGE = "itm_head.weight"
_LAYER = "Qformer.bert.encoder.layer."
_WORDS = "Qformer.bert.embeddings.word_embeddings.weight"
_PLACES = "Qformer.bert.embeddings.position_embeddings.weight"
_PROJECTIONS = ("opt_proj.weight", "t5_proj.weight", "llm_proj.weight")
_TOWER_HEAD_WIDTH, _READER_HEAD_WIDTH = 88, 64  # of EVA-CLIP-g and of BERT; no shape shows them


def read_tower(shapes: Shapes, where: str, whole: bool = True) -> EvaClipVision.Config:
    """The tower of a model's file or, not `whole`, of its own file, whose last block is left out.

    Raises: CheckpointError where a tensor that shows a size is missing, or has too few axes or too many.
    """
    prefix = TOWER if whole else ""

    def shape(name: str, axes: int) -> Sequence[int]:
        return _shape(shapes, prefix + name, axes, where)

    width, patch = shape("cls_token", 3)[-1], shape("patch_embed.proj.weight", 4)[-1]
    return blip_2_vision.read_lavis(
        {
            "img_size": math.isqrt(shape("pos_embed", 3)[1] - 1) * patch,
            "patch_size": patch,
            "embed_dim": width,
            "depth": len(_numbers(shapes, f"{prefix}blocks.")) - (not whole),
            "num_heads": max(1, width // _TOWER_HEAD_WIDTH),
            "mlp_ratio": (shape("blocks.0.mlp.fc1.weight", 2)[0] + 0.5) / width,  # read as int(width * ratio)
        }
    )


def read_qformer(shapes: Shapes, where: str) -> QFormer.Config:
    """The Q-Former of a file, which reads texts where the file has a table of words for it.

    Raises: CheckpointError where a tensor that shows a size is missing, or has too few axes or too many.
    """
    _, num_queries, width = _shape(shapes, "query_tokens", 3, where)
    layers = _numbers(shapes, _LAYER)
    crossing = [number for number in layers if f"{_LAYER}{number}.crossattention.self.query.weight" in shapes]
    config = QFormer.Config(
        num_queries=num_queries,
        width=width,
        num_layers=len(layers),
        num_heads=max(1, width // _READER_HEAD_WIDTH),
        feed_forward_width=_shape(shapes, f"{_LAYER}0.intermediate_query.dense.weight", 2, where)[0],
        cross_attention_every=crossing[1] - crossing[0] if len(crossing) > 1 else len(layers),
        vocabulary=_shape(shapes, _WORDS, 2, where)[0] if _WORDS in shapes else None,
        projected=any(name in shapes for name in _PROJECTIONS),
    )
    if not config.projected and FIRST_STAGE not in shapes:
        listed = ", ".join((*_PROJECTIONS, FIRST_STAGE))
        raise CheckpointError(f"{where} has none of {listed}; it is no file of LAVIS' BLIP-2")
    return replace(config, context=_shape(shapes, _PLACES, 2, where)[0]) if _PLACES in shapes else config


def read_embedding_width(shapes: Shapes, where: str) -> int:
    """Of the first stage's two embeddings. Raises: CheckpointError where the tensor that shows it is missing or no matrix."""
    return _shape(shapes, "text_proj.weight", 2, where)[0]


def _shape(shapes: Shapes, name: str, axes: int, where: str) -> Sequence[int]:
    """The shape of a tensor, told by its number of axes from what cannot show a size."""
    if name not in shapes:
        raise CheckpointError(f"{where} has no {name}, which shows a size; it is no file of LAVIS' BLIP-2")
    if len(shapes[name]) != axes:
        raise CheckpointError(
            f"{where}: {name}, which shows a size, has {axes} axes in a file of LAVIS' BLIP-2, here {tuple(shapes[name])}"
        )
    return shapes[name]


def _numbers(shapes: Shapes, prefix: str) -> list[int]:
    """The numbers that follow a prefix."""
    found = (re.match(r"\d+", name.removeprefix(prefix)) for name in shapes if name.startswith(prefix))
    return sorted({int(number[0]) for number in found if number})
