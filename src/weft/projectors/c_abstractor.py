"""The convolutional abstractor of Honeybee."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.core.errors import ConfigError
from weft.core.interfaces import InputProjector
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures, MediaTokens
from weft.layers.feature_grid import to_channels_first, to_channels_last
from weft.layers.regnet_stage import regnet_stage


class CAbstractor(InputProjector):
    """Learned positions, residual convolutions, the grid averaged down to `side` x `side`, convolutions again, an MLP.

    What a token holds comes from the places around it, which a resampler's queries have to learn.

    Shapes: features (N, grid_side**2, C) -> tokens (N * side**2, D).
    Raises: ConfigError for another grid than the one that the positions were made for.
    Source: Honeybee, arXiv:2312.06742; CLIP's last hidden state is its input. Also the connector of MM1, arXiv:2403.09611.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(InputProjector.Config):
        """`grid_side` is the encoder's grid; `depth` counts blocks before and again behind the pooling."""

        grid_side: int = 24
        side: int = 12
        depth: int = 3
        mlp_depth: int = 2
        norm_eps: float = 1e-5

        def build(self, input_width: int, output_width: int) -> CAbstractor:
            return CAbstractor(self, input_width, output_width)

        def num_tokens(self, layout: MediaLayout) -> int:
            if (layout.height, layout.width) != (self.grid_side, self.grid_side):
                raise ConfigError(
                    f"CAbstractor has learned positions for a grid of {self.grid_side}x{self.grid_side}, got "
                    f"{layout.height}x{layout.width}; set grid_side to the grid of the encoder, its class token left out"
                )
            return layout.num_units * self.side**2

        @classmethod
        def tiny(cls) -> Self:
            return cls(grid_side=4, side=2, depth=1)

    def __init__(self, config: Config, input_width: int, output_width: int) -> None:
        super().__init__()
        self.config = config
        self.position = nn.Parameter(torch.empty(config.grid_side**2, input_width))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.before_pooling = regnet_stage(input_width, config.depth, config.norm_eps)
        self.after_pooling = regnet_stage(input_width, config.depth, config.norm_eps)
        widths = (input_width, *[output_width] * (config.mlp_depth - 1))
        self.layers = nn.ModuleList(nn.Linear(width, output_width) for width in widths)

    def forward(self, features: MediaFeatures) -> MediaTokens:
        for layout in set(features.layout):
            self.config.num_tokens(layout)
        return features.on_grids(self.abstract)

    def abstract(self, values: Tensor, height: int, width: int) -> Tensor:
        """Shapes: [N, height * width, C] -> [N, side**2, D]."""
        grid = self.before_pooling(to_channels_first(values + self.position, height, width))
        grid = self.after_pooling(F.adaptive_avg_pool2d(grid, self.config.side))
        tokens = self.layers[0](to_channels_last(grid))
        for layer in self.layers[1:]:
            tokens = layer(F.silu(tokens))
        return tokens
