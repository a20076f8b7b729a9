"""One encoder and a head over its features, no language model: how an encoder is trained on unlabelled media."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from weft.core.batch import MultimodalBatch
from weft.core.errors import ConfigError
from weft.core.interfaces import ModalityEncoder, System
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.core.output import SystemOutput
from weft.layers.codeword_head import CodewordHead


@runtime_checkable
class HidesFeatures(Protocol):
    """What this system asks of an encoder: features with some of them hidden, and what its convolutions gave."""

    def masked_features(
        self,
        units: Tensor,
        unit_item: Tensor,
        layout: tuple[MediaLayout, ...],
        masked: Tensor | None,
        convolution_gradient: float = 1.0,
    ) -> tuple[MediaFeatures, Tensor]: ...


class MediaEncoder(System):
    """An encoder that says of every feature, masked or not, to which cluster it belongs.

    Shapes: units of one stream -> hidden [N, L, C]; head "cluster" gives [.., num_clusters]; embeddings "convolution" is what
    the encoder's convolutions gave, [N, L, E].
    Source: HuBERT's pre-training, arXiv:2106.07447.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(System.Config):
        """`embedding_width` of the codewords (256, 768, 1024 for HuBERT's sizes). `convolution_gradient` scales the gradients
        that reach the encoder's convolutions (0.1 for the base size, 1 for the others)."""

        encoder: ModalityEncoder.Config
        num_clusters: int
        embedding_width: int = 256
        temperature: float = 0.1
        convolution_gradient: float = 1.0
        stream: str = "audio"

        def build(self) -> MediaEncoder:
            return MediaEncoder(self)

        def num_positions(self, stream: str, layout: MediaLayout | None = None) -> int:
            """None: there is no text."""
            return 0

        def layout(self, stream: str) -> MediaLayout:
            if stream != self.stream:
                raise ConfigError(f"no stream {stream!r}; this system has {self.stream!r}")
            return self.encoder.layout()

        @property
        def context(self) -> int:
            """No text is read."""
            return 0

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config: Any = config
        self.encoder = config.encoder.build()
        if not isinstance(self.encoder, HidesFeatures):
            raise ConfigError(
                f"{config.encoder.part_name} cannot hide features from itself (it has no masked_features); HuBERT can"
            )
        self.head = CodewordHead(config.encoder.output_width, config.embedding_width, config.num_clusters, config.temperature)

    def encode(self, batch: MultimodalBatch) -> dict[str, MediaFeatures]:
        media = batch.media[self.config.stream]
        return {self.config.stream: self.encoder(media.units, media.unit_item, media.layout)}

    def hidden_features(
        self, units: Tensor, unit_item: Tensor, layout: tuple[MediaLayout, ...], masked: Tensor | None
    ) -> tuple[MediaFeatures, Tensor]:
        """The encoder's features with the `masked` ones hidden from it, and what its convolutions gave."""
        assert isinstance(self.encoder, HidesFeatures)
        return self.encoder.masked_features(units, unit_item, layout, masked, self.config.convolution_gradient)

    def forward(self, batch: MultimodalBatch, media: Mapping[str, MediaFeatures] | None = None) -> SystemOutput:
        """`media` given, nothing is hidden and the convolutions' output is not known."""
        heads = {"cluster": self.head}
        if media is not None:
            return SystemOutput(hidden=media[self.config.stream].values, heads=dict(heads))
        stream = batch.media[self.config.stream]
        features, convolved = self.hidden_features(stream.units, stream.unit_item, stream.layout, stream.masked)
        return SystemOutput(hidden=features.values, embeddings={"convolution": convolved}, heads=dict(heads))
