"""The features of a box on a grid, read bilinearly: RoIAlign."""

from __future__ import annotations

import torch
from torch import Tensor

from weft.core.errors import ConfigError


def roi_align(features: Tensor, boxes: Tensor, output_size: int, sampling: int = 2) -> Tensor:
    """Lay `output_size` x `output_size` bins on each box and average the places read inside each bin.

    The grid covers the picture; a feature stands at the middle of its cell (`aligned=True` elsewhere). `sampling` places a
    side of a bin are read, evenly; 0 reads as many as the bin has cells, rounded up, at least one. Up to one cell beyond the
    middle of the outermost features these go on as they are, farther out there are zeros. A box without extent is read at its
    point, also where other libraries read nothing of it (`sampling=0`); one with swapped corners is read mirrored.

    Shapes: features [N, C, H, W], boxes [R, 5] as (picture, x1, y1, x2, y2) -> [R, C, output_size, output_size].
    Units: boxes in fractions of the picture. Raises: ConfigError for sizes that are no counts.
    Source: Mask R-CNN, arXiv:1703.06870.
    """
    picture = boxes[:, 0].long()
    order = picture.argsort(stable=True)
    counts = torch.bincount(picture, minlength=len(features))
    found = [
        _bins(values, of_picture, output_size, sampling)
        for values, of_picture in zip(features, boxes[order, 1:].split(counts.tolist()), strict=True)
    ]
    return torch.cat(found)[order.argsort()]


def _bins(features: Tensor, boxes: Tensor, output_size: int, sampling: int) -> Tensor:
    """Shapes: features of one picture [C, H, W], its boxes [R, 4] -> [R, C, output_size, output_size]."""
    height, width = features.shape[1:]
    rows = bin_weights(boxes[:, 1], boxes[:, 3], height, output_size, sampling)
    columns = bin_weights(boxes[:, 0], boxes[:, 2], width, output_size, sampling)
    read = torch.einsum("rih,chw->rciw", rows, features.to(rows.dtype))
    return torch.einsum("rciw,rjw->rcij", read, columns).to(features.dtype)


def bin_weights(start: Tensor, end: Tensor, num_cells: int, num_bins: int, sampling: int = 2) -> Tensor:
    """How much each cell of one side of the grid counts in each bin of a box.

    Bilinear reading of evenly laid places goes side by side: rows' weights times columns' weights are the cells' weights.
    Computed in float32 at least: with 8 bits of mantissa a place of a 24 x 24 grid would be off by a tenth of a cell.

    Shapes: start, end [...] -> [..., num_bins, num_cells]. Units: start and end in fractions of the side.
    """
    if min(num_bins, num_cells) < 1 or sampling < 0:
        raise ConfigError(
            f"RoIAlign needs one bin and one cell or more, and sampling of 0 or more, got {num_bins} bins, {num_cells} cells, "
            f"sampling {sampling}"
        )
    kind = torch.promote_types(start.dtype, torch.float32)
    first, last = start.to(kind) * num_cells - 0.5, end.to(kind) * num_cells - 0.5
    bin_size = (last - first) / num_bins
    samples = torch.full_like(bin_size, sampling) if sampling else bin_size.detach().ceil().clamp(min=1)
    most = (sampling or int(samples.max())) if samples.numel() else 1
    steps = torch.arange(most, device=start.device, dtype=kind)
    inside = (steps + 0.5) / samples[..., None]  # [..., S], in bins
    bins = torch.arange(num_bins, device=start.device, dtype=kind)
    place = first[..., None, None] + (bins[:, None] + inside[..., None, :]) * bin_size[..., None, None]  # [..., bins, S]
    near = (place >= -1) & (place <= num_cells) & (steps < samples[..., None])[..., None, :]
    cells = torch.arange(num_cells, device=start.device, dtype=kind)
    distance = (place.clamp(0, num_cells - 1)[..., None] - cells).abs()
    weights = (1 - distance).clamp(min=0) * near[..., None]
    return weights.sum(-2) / samples[..., None, None]
