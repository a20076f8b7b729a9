"""Any image encoder over the frames of a video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from weft.core.errors import ConfigError
from weft.core.interfaces import ModalityEncoder
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.encoders.clip import ClipVision
from weft.layers.temporal_attention import attend_over_time, frames_of_videos
from weft.layers.temporal_embedding import TemporalEmbedding


class Video(ModalityEncoder):
    """Frames are encoded as pictures: each alone, with a learned vector that says when it was, or with attention over time.

    A video's frames are units of one item, so a projector may keep them apart (tokens of every frame, as Video-LLaVA) or read
    them together (a Perceiver, as Flamingo). A video of one frame is what a picture is; temporal embeddings tell even that
    when it was, attention over time does not touch it.

    Shapes: units [N, 3, S, S], one a frame -> values [N, L, C].
    Source: frames alone with temporal embeddings, Flamingo, arXiv:2204.14198; attention over time before each block's own,
    LanguageBind, arXiv:2310.01852, whose tower Video-LLaVA (arXiv:2311.10122) sees with (`transformers` has it without).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ModalityEncoder.Config):
        """`num_frames` counts the rows of a table of temporal embeddings; None: no table. Videos may be longer or shorter.

        `temporal`: one table is added to the features ("embedding"), or every block of the image encoder has a table and
        attention over a video's frames in front of its own ("attention").
        """

        modality: ClassVar[str] = "video"
        image: ModalityEncoder.Config = field(default_factory=ClipVision.Config)
        num_frames: int | None = None
        temporal: Literal["embedding", "attention"] = "embedding"

        def __post_init__(self) -> None:
            if self.temporal == "attention" and self.num_frames is None:
                raise ConfigError("attention over time tells frames apart by temporal embeddings; say num_frames")

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

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            """LanguageBind's tower, whose image encoder has the sizes of CLIP's and another activation."""
            image = replace(ClipVision.Config.sizes()["l-14"], activation="gelu")
            return {"languagebind-l-14": cls(image=image, num_frames=8, temporal="attention")}

    config: Any

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.image = config.image.build()
        self.frame_embedding: TemporalEmbedding | None = None
        if config.num_frames is not None and config.temporal == "attention":
            attend_over_time(self.image, config.num_frames)
        elif config.num_frames is not None:
            self.frame_embedding = TemporalEmbedding(config.num_frames, config.output_width, std=0.02)

    def forward(self, units: Tensor, unit_item: Tensor, layout: tuple[MediaLayout, ...]) -> MediaFeatures:
        with frames_of_videos(unit_item, layout):
            features: MediaFeatures = self.image(units, unit_item, layout)
        if self.frame_embedding is None:
            return features
        return replace(features, values=self.frame_embedding(features))
