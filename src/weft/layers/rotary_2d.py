"""Rotary positions on a grid: half of each head turns with the row, half with the column."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weft.layers.rotary import Rotary


class Rotary2d(nn.Module):
    """Cosine and sine tables for places on a grid, in the half-split layout that `rotate` takes.

    The first quarter of a head's channels and the third turn together by the row, the second and the fourth by the column. A
    layout that pairs neighbouring channels instead becomes this one when its query and key rows are put in another order, which
    changes no product of a query and a key.

    Shapes: places [B, T, 2], row and column -> (cos, sin), each [B, 1, T, head_width]; place (0, 0) turns nothing.
    Source: EVA-02, arXiv:2303.11331.
    """

    def __init__(self, head_width: int, theta: float = 10_000.0) -> None:
        super().__init__()
        self.axis = Rotary(head_width // 2, theta)

    def forward(self, places: Tensor) -> tuple[Tensor, Tensor]:
        (row_cos, row_sin), (column_cos, column_sin) = (self.axis(places[..., axis]) for axis in (0, 1))
        return _interlaced(row_cos, column_cos), _interlaced(row_sin, column_sin)


def _interlaced(row: Tensor, column: Tensor) -> Tensor:
    """The halves of two axes' tables, each [B, 1, T, d / 2], as those of one table [B, 1, T, d]."""
    first_row, second_row = row.chunk(2, -1)
    first_column, second_column = column.chunk(2, -1)
    return torch.cat((first_row, first_column, second_row, second_column), -1)


def grid_places(side: int, trained_side: int, device: torch.device) -> Tensor:
    """The places of a class token and of the patches of a square picture, row by row: [1, 1 + side * side, 2].

    The grid is stretched or squeezed to the `trained_side` patches that the frequencies were made for, so the places of a finer
    grid lie between the trained ones. The class token stands at (0, 0), where nothing is turned.
    """
    along = torch.arange(side, device=device, dtype=torch.float32) / side * trained_side
    patches = torch.cartesian_prod(along, along)
    return torch.cat((patches.new_zeros(1, 2), patches))[None]
