"""The place and size of a box as the numbers that region models read."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

BoxKind = Literal["corners", "corners_area", "corners_size"]
NUM_BOX_NUMBERS: dict[BoxKind, int] = {"corners": 4, "corners_area": 5, "corners_size": 6}


def box_geometry(boxes: Tensor, kind: BoxKind) -> Tensor:
    """What is said of each box: its corners alone (LXMERT), with its area (ViLBERT), or with width and height (OSCAR, VinVL).

    Shapes: boxes [..., 4] as (x1, y1, x2, y2) -> [..., 4], [..., 5] or [..., 6]. Units: fractions of the picture.
    Source: LXMERT, arXiv:1908.07490; ViLBERT, arXiv:1908.02265; OSCAR, arXiv:2004.06165, and VinVL, arXiv:2101.00529.
    """
    if kind == "corners":
        return boxes
    size = boxes[..., 2:] - boxes[..., :2]
    if kind == "corners_area":
        return torch.cat((boxes, size.prod(-1, keepdim=True)), -1)
    return torch.cat((boxes, size), -1)
