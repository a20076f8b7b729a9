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

    def vectors(self, num_frames: int) -> Tensor:
        """The vectors of all frames of a medium: [num_frames, C]."""
        place = torch.arange(num_frames, device=self.table.device)
        return self._at(place, torch.full_like(place, num_frames))

    def forward(self, features: MediaFeatures) -> Tensor:
        frames = torch.tensor([layout.frames for layout in features.layout], device=features.unit_item.device)
        units = torch.tensor([layout.num_units for layout in features.layout], device=features.unit_item.device)
        units_per_frame, num_frames = (units // frames)[features.unit_item], frames[features.unit_item]
        vectors = self._at(features.unit_place() // units_per_frame, num_frames)
        return features.values + vectors[:, None].to(features.values.dtype)

    def _at(self, place: Tensor, num_frames: Tensor) -> Tensor:
        """The vectors of frames number `place` of media that have `num_frames`: [N, C]."""
        last = len(self.table) - 1
        stretched = place * last / (num_frames - 1).clamp_min(1)
        row = torch.where(num_frames > last + 1, stretched, place.to(stretched.dtype)).clamp_max(last)
        below = row.floor().long()
        share = (row - below).to(self.table)[:, None]
        return torch.lerp(self.table[below], self.table[(below + 1).clamp_max(last)], share)
