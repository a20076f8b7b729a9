"""How the first models of regions embed them: a feature and its box, projected apart, normalised and put together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from weft.core.errors import ConfigError
from weft.core.interfaces import InputProjector
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures, MediaTokens


class RegionEmbedding(InputProjector):
    """One token a region. Its box's numbers are the last channels, as a region encoder lays them side by side.

    Shapes: features (N, R, C) -> tokens (regions, D).
    Source: LXMERT, arXiv:1908.07490 (`normalised="apart"`, 4 numbers); ViLBERT, arXiv:1908.02265 ("together", 5 numbers).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(InputProjector.Config):
        """`normalised` "apart": the mean of two normalised projections; "together": their normalised sum."""

        num_box_numbers: int = 4
        normalised: Literal["apart", "together"] = "apart"
        dropout: float = 0.1
        norm_eps: float = 1e-12

        def build(self, input_width: int, output_width: int) -> RegionEmbedding:
            return RegionEmbedding(self, input_width, output_width)

        def num_tokens(self, layout: MediaLayout) -> int:
            return layout.positions

        @property
        def keeps_places(self) -> bool:
            return False

    def __init__(self, config: Config, input_width: int, output_width: int) -> None:
        super().__init__()
        self.config = config
        feature_width = input_width - config.num_box_numbers
        if min(feature_width, config.num_box_numbers) < 1:
            raise ConfigError(
                f"features of width {input_width} do not hold {config.num_box_numbers} box numbers behind a feature; give the "
                'encoder a geometry and joined="side_by_side"'
            )
        self.feature = nn.Linear(feature_width, output_width)
        self.box = nn.Linear(config.num_box_numbers, output_width)
        self.norm = nn.LayerNorm(output_width, eps=config.norm_eps)
        self.box_norm = nn.LayerNorm(output_width, eps=config.norm_eps) if config.normalised == "apart" else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, features: MediaFeatures) -> MediaTokens:
        values, numbers = features.values.tensor_split([self.feature.in_features], -1)
        values, numbers = self.feature(values), self.box(numbers)
        if self.box_norm is None:
            values = self.norm(values + numbers)
        else:
            values = (self.norm(values) + self.box_norm(numbers)) / 2
        return MediaTokens.one_each(self.dropout(values), features)
