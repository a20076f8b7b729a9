"""A causal language model that sees: streams of media, joined by a list of fusions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from weft.core import config
from weft.core.batch import MultimodalBatch
from weft.core.errors import ConfigError, MediaTokenMismatch
from weft.core.interfaces import Fusion, InputProjector, LanguageModel, ModalityEncoder, System
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures, MediaTokens
from weft.core.memory import Visibility
from weft.core.output import SystemOutput
from weft.core.sequence import TokenSequence
from weft.layers.added_tokens import AddedTokens


class Stream(nn.Module):
    """One modality on its way to the language model: an encoder and its projector."""

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config):
        """`source`: another stream whose media this one sees too; equal encoders of the two are one encoder."""

        encoder: ModalityEncoder.Config
        projector: InputProjector.Config
        source: str | None = None

        @property
        def num_tokens(self) -> int:
            """Tokens of one medium at the encoder's own resolution."""
            return self.projector.num_tokens(self.encoder.layout())

        def build(self, width: int, shared: ModalityEncoder | None = None) -> Stream:
            """The stream; with `shared`, on another's encoder."""
            made = Stream(
                self.encoder.build() if shared is None else None, self.projector.build(self.encoder.output_width, width)
            )
            if shared is not None:
                vars(made)["encoder"] = shared  # not as a submodule: its parameters have one name and are saved once
            return made

    encoder: ModalityEncoder

    def __init__(self, encoder: ModalityEncoder | None, projector: InputProjector) -> None:
        super().__init__()
        if encoder is not None:
            self.encoder = encoder
        self.projector = projector


class MultimodalSystem(System, ABC):
    """Encoders and projectors by stream, a language model, and the fusions that join them.

    Shapes: batch of text [B, T] and media -> hidden [B, T, D] of the text that is written; head "text" gives [.., V].
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(System.Config, ABC):
        language_model: LanguageModel.Config
        streams: Mapping[str, Stream.Config] = field(default_factory=dict)
        fusions: tuple[Fusion.Config, ...] = ()

        def __post_init__(self) -> None:
            read = [stream for fusion in self.fusions for stream in fusion.streams]
            if sorted(read) != sorted(self.streams):
                raise ConfigError(
                    f"each stream is read by exactly one fusion: streams {sorted(self.streams)}, read {sorted(read)}"
                )
            sources = sorted(name for name, stream in self.streams.items() if stream.source is None)
            for name, stream in self.streams.items():
                if stream.source is not None and stream.source not in sources:
                    raise ConfigError(f"stream {name!r} sees what {stream.source!r} sees; with media of their own: {sources}")

        def num_positions(self, stream: str, layout: MediaLayout | None = None) -> int:
            fusion = self.reader(stream)
            layout = self.layout(stream) if layout is None else layout
            return fusion.num_positions(self.streams[stream].projector.num_tokens(layout))

        def visibility(self, stream: str) -> Visibility | None:
            return next((fusion.visibility for fusion in self.fusions if stream in fusion.streams), None)

        def shares_positions(self, stream: str) -> bool:
            return self.reader(stream).shares_positions

        def instruction_vocabulary(self, stream: str) -> int | None:
            return self.streams[stream].projector.instruction_vocabulary if stream in self.streams else None

        def followers(self, stream: str) -> tuple[str, ...]:
            return tuple(name for name, each in self.streams.items() if each.source == stream)

        def reader(self, stream: str) -> Fusion.Config:
            """The fusion that reads a stream."""
            for fusion in self.fusions:
                if stream in fusion.streams:
                    return fusion
            raise ConfigError(f"no stream {stream!r}; this system has {sorted(self.streams)}")

        def layout(self, stream: str) -> MediaLayout:
            """The feature grid of one medium at the encoder's own resolution."""
            if stream not in self.streams:
                raise ConfigError(f"no stream {stream!r}; this system has {sorted(self.streams)}")
            return self.streams[stream].encoder.layout()

        @property
        def context(self) -> int:
            return self.language_model.context

        @property
        def vocabulary(self) -> int:
            return self.language_model.vocabulary

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config: Any = config
        self.language_model = config.language_model.build()
        width = config.language_model.output_width
        self.streams = nn.ModuleDict()
        for name, stream in sorted(config.streams.items(), key=lambda each: each[1].source is not None):  # sources first
            source = None if stream.source is None else self.stream(stream.source).encoder
            shared = source if source is not None and source.config == stream.encoder else None
            self.streams[name] = stream.build(config.reader(name).media_width(width), shared)
        self.fusions = nn.ModuleList(fusion.build() for fusion in config.fusions)
        for fusion in self.fusions:
            cast(Fusion, fusion).install(self.reading_half)

    @property
    @abstractmethod
    def reading_half(self) -> LanguageModel:
        """What media and the main text go into: the language model, or its encoder."""

    @abstractmethod
    def sequence(self, batch: MultimodalBatch, media: Mapping[str, MediaFeatures] | None = None) -> TokenSequence:
        """The embedded batch with every fusion applied: what the language model reads."""

    def embed(self, tokens: Tensor) -> Tensor:
        """What the language model reads of tokens. Shapes: [B, T] -> [B, T, D]."""
        return self.language_model.embed(tokens)

    def head(self, hidden: Tensor) -> Tensor:
        """Shapes: hidden [.., D] -> logits [.., V]."""
        return self.language_model.head(hidden)

    def _absent(self, batch: MultimodalBatch) -> Iterator[Tensor]:
        """For every trained stream that the batch does not show, zero: a blank medium through its parts, times zero.

        So every rank enters every part in every step, whatever its batch holds.
        """
        for name, each in self.streams.items():
            stream = cast(Stream, each)
            if name in batch.media or not any(p.requires_grad for p in stream.parameters()):
                continue
            layout, like = stream.encoder.config.layout(), next(stream.parameters())
            units = like.new_zeros(layout.num_units, *stream.encoder.config.unit_shape)
            unit_item = torch.zeros(layout.num_units, dtype=torch.long, device=like.device)
            yield 0.0 * stream.projector(encoded(stream.encoder, units, unit_item, (layout,))).values.sum()

    def stream(self, name: str) -> Stream:
        """The encoder and projector of a stream."""
        if name not in self.streams:
            raise ConfigError(f"no stream {name!r}; this system has {sorted(self.streams)}")
        return cast(Stream, self.streams[name])

    def encode(self, batch: MultimodalBatch) -> dict[str, MediaFeatures]:
        features = {}
        for name, media in batch.media.items():
            features[name] = encoded(self.stream(name).encoder, media.units, media.unit_item, media.layout)
        return features

    def project(self, batch: MultimodalBatch, features: Mapping[str, MediaFeatures]) -> dict[str, MediaTokens]:
        """Features to tokens, with the token count held to the projector's promise."""
        tokens = {}
        for name, feature in features.items():
            projector, media = self.stream(name).projector, batch.media[name]
            emitted = projector(replace(feature, instruction=media.instruction, item_place=media.item_place))
            promised = sum(projector.config.num_tokens(layout) for layout in feature.layout)
            if len(emitted.values) != promised:
                raise MediaTokenMismatch(
                    f"stream {name!r}: {type(projector).__name__} promised {promised} tokens for {len(feature.layout)} media "
                    f"and emitted {len(emitted.values)}; its num_tokens disagrees with its forward"
                )
            tokens[name] = replace(emitted, spans=media.spans)
        return tokens

    def fused(self, batch: MultimodalBatch, media: Mapping[str, MediaFeatures] | None = None) -> TokenSequence:
        """The main text, embedded, with every fusion applied."""
        features = self.encode(batch) if media is None else media
        tokens = self.project(batch, features)
        text = batch.main
        embeddings = self.embed(text.tokens)
        if torch.is_grad_enabled():
            for zero in self._absent(batch):
                embeddings = embeddings + zero
        sequence = TokenSequence(embeddings, text.positions, text.rule(), text.modality, visible=text.visible)
        for fusion in self.fusions:
            sequence = cast(Fusion, fusion).fuse(sequence, tokens)
        return sequence

    def forward(self, batch: MultimodalBatch, media: Mapping[str, MediaFeatures] | None = None) -> SystemOutput:
        hidden, _ = self.language_model(self.sequence(batch, media))
        return SystemOutput(hidden=hidden, heads={"text": self.head})


def encoded(encoder: ModalityEncoder, units: Tensor, unit_item: Tensor, layout: tuple[MediaLayout, ...]) -> MediaFeatures:
    """An encoder's features; nothing is kept for a backward where nothing of it is trained."""
    trained = torch.is_grad_enabled() and any(p.requires_grad for p in encoder.parameters())
    with torch.set_grad_enabled(trained):
        features: MediaFeatures = encoder(units, unit_item, layout)
    return features


class MultimodalLM(MultimodalSystem):
    """A language model that reads and writes one text, and media in it.

    Shapes: batch of text [B, T] and media -> hidden [B, T, D]; head "text" gives [.., V].
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MultimodalSystem.Config):
        """`added_tokens` are ids behind the language model's vocabulary, with tables of their own."""

        added_tokens: AddedTokens.Config | None = None

        def build(self) -> MultimodalLM:
            return MultimodalLM(self)

        @property
        def vocabulary(self) -> int:
            return self.language_model.vocabulary + (self.added_tokens.num_inputs if self.added_tokens else 0)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.added_tokens: AddedTokens | None = None
        if config.added_tokens is not None:
            model = config.language_model
            self.added_tokens = config.added_tokens.build(model.vocabulary, model.output_width)

    def embed(self, tokens: Tensor) -> Tensor:
        added, embed = self.added_tokens, self.language_model.embed
        return embed(tokens) if added is None else added.embed(tokens, embed)

    def head(self, hidden: Tensor) -> Tensor:
        added, head = self.added_tokens, self.language_model.head
        return head(hidden) if added is None else added.head(hidden, head)

    @property
    def reading_half(self) -> LanguageModel:
        return self.language_model

    def sequence(self, batch: MultimodalBatch, media: Mapping[str, MediaFeatures] | None = None) -> TokenSequence:
        return self.fused(batch, media)
