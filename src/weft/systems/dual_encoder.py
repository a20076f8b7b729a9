"""Two towers that meet in one space: CLIP, SigLIP and their kin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.core.batch import MultimodalBatch
from weft.core.errors import ConfigError
from weft.core.interfaces import ModalityEncoder, System, TextEncoder
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.core.output import SystemOutput


class DualEncoder(System):
    """A media tower and a text tower, each pooled, projected where the family projects, and normalised.

    Shapes: N media and B texts -> embeddings "media" [N, E] and "text" [B, E], of length 1; with `compared="features"` every
    feature of a medium keeps its own embedding: "media" [N, L, E].
    Source: CLIP, arXiv:2103.00020; SigLIP, arXiv:2303.15343; CLAP, arXiv:2211.06687; comparing features, FILIP,
    arXiv:2111.07783.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(System.Config):
        media: ModalityEncoder.Config
        text: TextEncoder.Config
        embedding_width: int | None = None  # None: the towers' pooled vectors are compared as they are
        projected: tuple[Literal["media", "text"], ...] = ("media", "text")  # EVA-CLIP's media tower has a head of its own
        initial_scale: float = 1 / 0.07
        initial_bias: float | None = None  # SigLIP's; None: no bias
        scale_per_direction: bool = False  # LAION's CLAP: a second scale, of text against media
        stream: str = "image"
        compared: Literal["pooled", "features"] = "pooled"

        def __post_init__(self) -> None:
            media, text = self.compared_width("media"), self.compared_width("text")
            if media != text:
                raise ConfigError(
                    f"{self.media.part_name} is compared at width {media}, {self.text.part_name} at width {text}; set "
                    "embedding_width to project both, or a projected side to the other's width"
                )

        def compared_width(self, side: Literal["media", "text"]) -> int:
            """E as one side gives it."""
            if self.embedding_width is not None and side in self.projected:
                return self.embedding_width
            return self.media_width if side == "media" else self.text.output_width

        @property
        def media_width(self) -> int:
            """The width of what the media tower compares, before projection."""
            return self.media.pooled_width if self.compared == "pooled" else self.media.output_width

        def build(self) -> DualEncoder:
            return DualEncoder(self)

        def num_positions(self, stream: str, layout: MediaLayout | None = None) -> int:
            """None: the towers meet after pooling."""
            return 0

        def layout(self, stream: str) -> MediaLayout:
            if stream != self.stream:
                raise ConfigError(f"no stream {stream!r}; this system has {self.stream!r}")
            return self.media.layout()

        @property
        def context(self) -> int:
            return self.text.context

        @property
        def vocabulary(self) -> int:
            return self.text.vocabulary

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config: Any = config
        self.media = config.media.build()
        self.text = config.text.build()
        self.media_projection = self._projection("media", config.media_width)
        self.text_projection = self._projection("text", config.text.output_width)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(config.initial_scale)))
        self.text_logit_scale = nn.Parameter(self.logit_scale.detach().clone()) if config.scale_per_direction else None
        self.logit_bias: nn.Parameter | None = None
        if config.initial_bias is not None:
            self.logit_bias = nn.Parameter(torch.tensor(config.initial_bias))

    def _projection(self, side: Literal["media", "text"], width: int) -> nn.Module:
        if self.config.embedding_width is None or side not in self.config.projected:
            return nn.Identity()
        projection = nn.Linear(width, self.config.embedding_width, bias=False)
        nn.init.normal_(projection.weight, std=width**-0.5)
        return projection

    def encode(self, batch: MultimodalBatch) -> dict[str, MediaFeatures]:
        media = batch.media[self.config.stream]
        return {self.config.stream: self.media(media.units, media.unit_item, media.layout)}

    def project_media(
        self, units: Tensor, unit_item: Tensor, layout: tuple[MediaLayout, ...], features: MediaFeatures | None = None
    ) -> Tensor:
        """What is compared of media, not yet of length 1: [N, E], or [N, L, E] where features are compared."""
        if self.config.compared == "pooled":
            return self.media_projection(self.media.pool(units))
        known = self.media(units, unit_item, layout) if features is None else features
        return self.media_projection(known.values)

    def forward(self, batch: MultimodalBatch, media: Mapping[str, MediaFeatures] | None = None) -> SystemOutput:
        """A side that the batch does not hold is left out, so either tower runs alone."""
        embeddings = {}
        if self.config.stream in batch.media:
            stream = batch.media[self.config.stream]
            known = media[self.config.stream] if media is not None else None
            embeddings["media"] = F.normalize(self.project_media(stream.units, stream.unit_item, stream.layout, known), dim=-1)
        if batch.main.tokens.numel():
            embeddings["text"] = F.normalize(self.text_projection(self.text(batch.main)), dim=-1)
        return SystemOutput(embeddings=embeddings)
