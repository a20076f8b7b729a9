"""Any image encoder over the frames of a video."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from weft.core.interfaces import ModalityEncoder
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.encoders.clip import ClipVision
from weft.layers.temporal_embedding import TemporalEmbedding


class Video(ModalityEncoder):
    """Each frame is encoded alone, as a picture; a learned vector may say when it was.

    A video's frames are units of one item, so a projector may keep them apart (tokens of every frame, as Video-LLaVA) or read
    them together (a Perceiver, as Flamingo). Without temporal embeddings a video of one frame is what a picture is.

    Shapes: units [N, 3, S, S], one a frame -> values [N, L, C].
    Source: frames alone with temporal embeddings, Flamingo, arXiv:2204.14198; without, Video-LLaVA, arXiv:2311.10122, as
    `transformers` has it (the published video tower also attends over time).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ModalityEncoder.Config):
        """`num_frames` counts the rows of the table of temporal embeddings; None: no table. Videos may be longer or shorter."""

        modality: ClassVar[str] = "video"
        image: ModalityEncoder.Config = field(default_factory=ClipVision.Config)
        num_frames: int | None = None

        def build(self) -> Video:
            return Video(self)

        @property
        def output_width(self) -> int:
            return self.image.output_width

        @property
        def unit_shape(self) -> tuple[int, ...]:
            return self.image.unit_shape

        def layout(self) -> MediaLayout:
            """The grid of one frame."""
            return self.image.layout()

        @classmethod
        def tiny(cls) -> Self:
            return cls(image=ClipVision.Config.tiny(), num_frames=4)

    config: Any

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.image = config.image.build()
        self.frame_embedding: TemporalEmbedding | None = None
        if config.num_frames is not None:
            self.frame_embedding = TemporalEmbedding(config.num_frames, config.output_width, std=0.02)

    def forward(self, units: Tensor, unit_item: Tensor, layout: tuple[MediaLayout, ...]) -> MediaFeatures:
        features: MediaFeatures = self.image(units, unit_item, layout)
        if self.frame_embedding is None:
            return features
        return replace(features, values=self.frame_embedding(features))
