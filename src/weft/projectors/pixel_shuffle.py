"""The pixel-shuffle projector of InternVL 1.5."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from weft.core.errors import ConfigError
from weft.core.interfaces import InputProjector
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures, MediaTokens


def merge_neighbours(values: Tensor, height: int, width: int, ratio: int) -> Tensor:
    """Concatenate each ratio x ratio block of the grid on channels, row by row inside the block.

    Shapes: [N, height * width, C] -> [N, height / ratio * width / ratio, C * ratio**2].
    """
    batch, _, channels = values.shape
    grid = values.view(batch, height // ratio, ratio, width // ratio, ratio, channels)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(batch, -1, channels * ratio * ratio)


class PixelShuffle(InputProjector):
    """Trade resolution for channels, then normalise and map to the language width.

    Shapes: features (N, H * W, C) -> tokens (N * H * W / ratio**2, D); ratio must divide H and W.
    Source: InternVL 1.5, arXiv:2404.16821 (the row-major order of its second version).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(InputProjector.Config):
        ratio: int = 2

        def build(self, input_width: int, output_width: int) -> PixelShuffle:
            return PixelShuffle(self, input_width, output_width)

        def num_tokens(self, layout: MediaLayout) -> int:
            if layout.height % self.ratio or layout.width % self.ratio:
                raise ConfigError(
                    f"PixelShuffle with ratio {self.ratio} needs a grid that it divides, got {layout.height}x{layout.width}"
                )
            return layout.positions // self.ratio**2

    def __init__(self, config: Config, input_width: int, output_width: int) -> None:
        super().__init__()
        self.config = config
        merged = input_width * config.ratio**2
        self.norm = nn.LayerNorm(merged)
        self.up = nn.Linear(merged, output_width)
        self.activation = nn.GELU()
        self.down = nn.Linear(output_width, output_width)

    def forward(self, features: MediaFeatures) -> MediaTokens:
        merged = self.merge(features)
        return MediaTokens.from_units(self.down(self.activation(self.up(self.norm(merged)))), features)

    def merge(self, features: MediaFeatures) -> Tensor:
        """Every unit's neighbours on channels."""
        for layout in features.layout:
            self.config.num_tokens(layout)
        return features.on_grids(lambda values, height, width: merge_neighbours(values, height, width, self.config.ratio))
