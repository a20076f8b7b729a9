"""Patches of a picture and nothing more, for language models that see for themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from weft.core.interfaces import ModalityEncoder
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.layers.patch_embedding import PatchEmbedding, patches_per_side
from weft.layers.precision import working_precision


class PatchVision(ModalityEncoder):
    """One linear map of each patch and a learned vector of its place; no block follows.

    The published files hold a class token and its place besides, which no feature reads.

    Shapes: units [N, 3, S, S] -> values [N, G * G, C] with G = S // patch_size.
    Source: Mono-InternVL, arXiv:2410.08202.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ModalityEncoder.Config):
        image_size: int = 448
        patch_size: int = 14
        width: int = 1024

        def __post_init__(self) -> None:
            patches_per_side(self.image_size, self.patch_size)

        def build(self) -> PatchVision:
            return PatchVision(self)

        @property
        def output_width(self) -> int:
            return self.width

        def layout(self) -> MediaLayout:
            side = patches_per_side(self.image_size, self.patch_size)
            return MediaLayout(side, side)

        @classmethod
        def tiny(cls) -> Self:
            return cls(image_size=32, patch_size=8, width=48)

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            return {"mono-internvl-2b": cls()}

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        places = patches_per_side(config.image_size, config.patch_size) ** 2
        self.patch_embedding = PatchEmbedding(config.image_size, config.patch_size, config.width, bias=True)
        self.position_embedding = nn.Parameter(torch.empty(places, config.width))
        self.initialise()

    def initialise(self) -> None:
        """A small start of the places; the patch convolution keeps PyTorch's."""
        nn.init.trunc_normal_(self.position_embedding, std=0.02)

    def forward(self, units: Tensor, unit_item: Tensor, layout: tuple[MediaLayout, ...]) -> MediaFeatures:
        values = self.patch_embedding(units) + self.position_embedding
        return MediaFeatures(working_precision(values), unit_item, layout)
