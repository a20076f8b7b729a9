"""The Perceiver Resampler of Flamingo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from weft.core.errors import DataError
from weft.core.interfaces import InputProjector
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures, MediaTokens
from weft.layers.cross_attention import CrossAttention
from weft.layers.feed_forward import FeedForward
from weft.layers.temporal_embedding import TemporalEmbedding


class PerceiverLayer(nn.Module):
    """Latents attend to the media and to themselves, then pass a feed-forward; no linear layer has a bias.

    Shapes: latents [B, K, D], media [B, M, D], valid [B, M] or None -> latents [B, K, D].
    """

    def __init__(self, config: Perceiver.Config, width: int) -> None:
        super().__init__()
        c = config
        self.media_norm = nn.LayerNorm(width, eps=c.norm_eps)
        self.latent_norm = nn.LayerNorm(width, eps=c.norm_eps)
        self.attention = CrossAttention(
            width,
            c.num_heads,
            head_width=c.head_width,
            query_bias=False,
            key_bias=False,
            value_bias=False,
            output_bias=False,
            head_norm=(lambda head: nn.LayerNorm(head, eps=c.norm_eps)) if c.head_norms else None,
        )
        self.feed_forward_norm = nn.LayerNorm(width, eps=c.norm_eps)
        self.feed_forward = FeedForward(width, c.expansion * width, c.activation, bias=False)

    def forward(self, latents: Tensor, media: Tensor, valid: Tensor | None) -> Tensor:
        queries = self.latent_norm(latents)
        memory = torch.cat((self.media_norm(media), queries), 1)
        if valid is not None:
            valid = torch.cat((valid, valid.new_ones(queries.shape[:2])), 1)
        latents = latents + self.attention(queries, memory, valid)
        return latents + self.feed_forward(self.feed_forward_norm(latents))


class Perceiver(InputProjector):
    """A fixed number of learned latents reads all features of a medium: K tokens, whatever its size and number of frames.

    All units of an item are one memory. Space has no position here (the encoder's own has to do), time has one where
    `num_frames` gives the table rows; see `TemporalEmbedding` for media with more frames.
    The published module puts out the width of the encoder, which cross-attention reads. Here a linear layer stands before the
    latents only where `width` differs from the encoder's, and one behind them only where the language model's differs from it.

    Shapes: features (N, L, C) -> tokens (items * num_latents, D).
    Source: Flamingo, arXiv:2204.14198 (width 1536, 16 heads, squared ReLU; it does not say how wide a head is); sizes of
    OpenFlamingo, arXiv:2308.01390, and of IDEFICS, whose layers are the same with ReLU and, in some files, norms of each head's
    queries and keys (`head_norms`).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(InputProjector.Config):
        """`width` is the latents' (None: the encoder's); `num_frames` and `num_media` count the learned vectors of frames, by
        their place in the medium, and of media, by their place in the sample (None: no such vectors)."""

        num_latents: int = 64
        num_layers: int = 6
        width: int | None = None
        num_heads: int = 8
        head_width: int = 64
        expansion: int = 4
        activation: str = "gelu"
        head_norms: bool = False
        num_frames: int | None = None
        num_media: int | None = None
        norm_eps: float = 1e-5

        def build(self, input_width: int, output_width: int) -> Perceiver:
            return Perceiver(self, input_width, output_width)

        def num_tokens(self, layout: MediaLayout) -> int:
            return self.num_latents

        @property
        def keeps_places(self) -> bool:
            return False

        @classmethod
        def tiny(cls) -> Self:
            return cls(num_latents=4, num_layers=2, num_heads=2, head_width=8, num_frames=2, num_media=3)

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            """The published sizes by name."""
            return {"openflamingo": cls(), "idefics": cls(num_heads=16, head_width=96, activation="relu")}

    def __init__(self, config: Config, input_width: int, output_width: int) -> None:
        super().__init__()
        self.config = config
        width = config.width or input_width
        self.input = nn.Linear(input_width, width) if input_width != width else nn.Identity()
        self.latents = nn.Parameter(torch.randn(config.num_latents, width))
        self.frame_embedding: TemporalEmbedding | None = None
        if config.num_frames is not None:
            self.frame_embedding = TemporalEmbedding(config.num_frames, width, std=1.0)
        self.media_embedding: nn.Parameter | None = None
        if config.num_media is not None:
            self.media_embedding = nn.Parameter(torch.randn(config.num_media, width))
        self.layers = nn.ModuleList(PerceiverLayer(config, width) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.output = nn.Linear(width, output_width) if output_width != width else nn.Identity()

    def forward(self, features: MediaFeatures) -> MediaTokens:
        features = replace(features, values=self.input(features.values))
        if self.frame_embedding is not None:
            features = replace(features, values=self.frame_embedding(features))
        if self.media_embedding is not None:
            features = replace(features, values=features.values + self._media_vectors(features, self.media_embedding))
        media, valid = features.by_item()
        latents = self.latents.expand(len(media), -1, -1)
        for layer in self.layers:
            latents = layer(latents, media, valid)
        tokens = self.output(self.final_norm(latents))
        item = torch.arange(len(media), device=features.unit_item.device)
        return MediaTokens(tokens.flatten(0, 1), item.repeat_interleave(self.config.num_latents))

    def _media_vectors(self, features: MediaFeatures, table: Tensor) -> Tensor:
        """The vector of each unit's medium: [N, 1, D]. Raises: DataError for a sample with more media than the table has."""
        if features.item_place is None:
            return table[0]
        if len(features.item_place) and int(features.item_place.max()) >= len(table):
            raise DataError(
                f"a sample shows {int(features.item_place.max()) + 1} media, the Perceiver has vectors for {len(table)}; "
                "raise num_media"
            )
        return table[features.item_place[features.unit_item]][:, None]
