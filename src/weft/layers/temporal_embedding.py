"""Learned positions in time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weft.core.media import MediaFeatures


class TemporalEmbedding(nn.Module):
    """A learned vector for every frame, added to all of the frame's features.

    A medium of up to `num_frames` frames takes the first rows of the table; for a longer one the table is stretched over its
    frames by linear interpolation, ends to ends, so that a model may see more frames than it was trained with.

    Shapes: features [N, L, C] -> values [N, L, C]. Source: Flamingo, arXiv:2204.14198.
    """

    def __init__(self, num_frames: int, width: int, std: float) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(num_frames, width) * std)

    def forward(self, features: MediaFeatures) -> Tensor:
        last = len(self.table) - 1
        frames = torch.tensor([layout.frames for layout in features.layout], device=features.unit_item.device)
        units = torch.tensor([layout.num_units for layout in features.layout], device=features.unit_item.device)
        units_per_frame, num_frames = (units // frames)[features.unit_item], frames[features.unit_item]
        place = features.unit_place() // units_per_frame
        stretched = place * last / (num_frames - 1).clamp_min(1)
        row = torch.where(num_frames > last + 1, stretched, place.to(stretched.dtype)).clamp_max(last)
        below = row.floor().long()
        share = (row - below).to(self.table)[:, None]
        vectors = torch.lerp(self.table[below], self.table[(below + 1).clamp_max(last)], share)
        return features.values + vectors[:, None].to(features.values.dtype)
