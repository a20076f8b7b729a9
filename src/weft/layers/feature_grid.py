"""Features of a unit as the grid that they stand for."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from weft.core.errors import ConfigError
from weft.core.layout import MediaLayout


def check_grid(layout: MediaLayout, part: str) -> None:
    """Raises: ConfigError for features in a single row, which is what is left of a grid where a class token stands in it."""
    if layout.height == 1 and layout.width > 1:
        raise ConfigError(
            f"{part} needs a grid of features, got a row of {layout.width}; leave the encoder's class token out "
            "(keep_class_token=False)"
        )


def check_side(layout: MediaLayout, side: int, part: str) -> None:
    """Raises: ConfigError for a grid that is smaller than the `side` x `side` that it should be averaged down to."""
    if min(layout.height, layout.width) < side:
        raise ConfigError(
            f"{part} to {side}x{side} needs a grid of at least that, got {layout.height}x{layout.width}; "
            "choose a smaller side, or drop the encoder's class token"
        )


def to_channels_first(values: Tensor, height: int, width: int) -> Tensor:
    """Shapes: [N, height * width, C] -> [N, C, height, width]."""
    return values.transpose(1, 2).unflatten(2, (height, width))


def to_channels_last(grid: Tensor) -> Tensor:
    """Shapes: [N, C, height, width] -> [N, height * width, C]."""
    return grid.flatten(2).transpose(1, 2)


def merge_neighbours(values: Tensor, height: int, width: int, ratio: int) -> Tensor:
    """Concatenate each ratio x ratio block of the grid on channels, row by row inside the block.

    Shapes: [N, height * width, C] -> [N, height / ratio * width / ratio, C * ratio**2].
    """
    batch, _, channels = values.shape
    grid = values.view(batch, height // ratio, ratio, width // ratio, ratio, channels)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(batch, -1, channels * ratio * ratio)


def pad_grid(values: Tensor, height: int, width: int, ratio: int) -> tuple[Tensor, int, int]:
    """Zeros below and to the right until `ratio` divides the grid; returns the values and their height and width.

    Shapes: [N, height * width, C] -> [N, H * W, C] with H and W the next multiples of `ratio`.
    """
    below, right = -height % ratio, -width % ratio
    padded = F.pad(values.unflatten(1, (height, width)), (0, 0, 0, right, 0, below))
    return padded.flatten(1, 2), height + below, width + right


def by_columns(values: Tensor, height: int, width: int) -> Tensor:
    """The features of a grid column by column, where they stood row by row. Shapes: [N, height * width, C] -> the same."""
    return values.unflatten(1, (height, width)).transpose(1, 2).flatten(1, 2)
