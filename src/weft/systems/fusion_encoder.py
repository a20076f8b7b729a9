"""Learned queries and a text in one transformer, beside an encoder: the first stage of BLIP-2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.core.attention_rule import AttentionRule
from weft.core.batch import MultimodalBatch
from weft.core.errors import ConfigError, DataError
from weft.core.interfaces import System
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.core.output import SystemOutput
from weft.layers.feed_forward import activation
from weft.layers.query_transformer import QueryTransformer
from weft.systems.multimodal_lm import Stream, encoded


@runtime_checkable
class ReadsText(Protocol):
    """What this system asks of a projector's config: queries that share a transformer with a text, and no map behind them.

    The projector holds that transformer as `transformer`.
    """

    @property
    def num_queries(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def vocabulary(self) -> int | None: ...
    @property
    def context(self) -> int: ...
    @property
    def activation(self) -> str: ...
    @property
    def norm_eps(self) -> float: ...
    @property
    def projected(self) -> bool: ...


class WordHead(nn.Module):
    """BERT's head over the words, with the table that the words are read by.

    Shapes: hidden [.., D], table [V, D] -> logits [.., V]. Source: arXiv:1810.04805.
    """

    def __init__(self, width: int, vocabulary: int, activation_name: str, norm_eps: float) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.activation = activation(activation_name)

    def forward(self, hidden: Tensor, table: Tensor) -> Tensor:
        return F.linear(self.norm(self.activation(self.transform(hidden))), table, self.bias)


class FusionEncoder(System):
    """A Q-Former reads a medium and a text in one row, queries first, and heads say how far the two belong together.

    Who sees whom is written in the batch: queries have order 0 and segment 1, and the text joins them by what its tokens have
    (`weft.core.query_text_rules`, `MultimodalBatch.arrange`). A row holds one text and shows one medium. The stream has the
    names that it has in the second stage, where its Q-Former is the projector of a language model.

    Shapes: B rows of T tokens -> hidden [B, T, D] of the text; embeddings "queries" [B, K, D] and, of length 1, "media"
    [B, K, E] and "text" [B, E], the latter of each row's first token; head "text" gives [.., V] of hidden, "matching" gives
    [.., 2] of queries, the second of which says that they match.
    Source: BLIP-2, arXiv:2301.12597.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(System.Config):
        """`start_token` stands in the first place of a text that is written, [DEC] in the published vocabulary."""

        streams: Mapping[str, Stream.Config]
        start_token: int
        embedding_width: int = 256
        initial_temperature: float = 0.07

        def __post_init__(self) -> None:
            if len(self.streams) != 1:
                raise ConfigError(f"a fusion encoder reads one stream beside a text, got {sorted(self.streams)}")
            projector = self.streams[self.stream].projector
            if not isinstance(projector, ReadsText) or projector.vocabulary is None or projector.projected:
                raise ConfigError(
                    f"{projector.part_name} does not read a text beside its queries and nothing else; give a Q-Former with a "
                    "vocabulary and projected=False"
                )
            if not 0 <= self.start_token < projector.vocabulary:
                raise ConfigError(f"start_token {self.start_token} is none of the {projector.vocabulary} ids of the vocabulary")

        @property
        def stream(self) -> str:
            """The one stream."""
            return next(iter(self.streams))

        @property
        def reader(self) -> ReadsText:
            """The Q-Former."""
            return cast(ReadsText, self.streams[self.stream].projector)

        def build(self) -> FusionEncoder:
            return FusionEncoder(self)

        def num_positions(self, stream: str, layout: MediaLayout | None = None) -> int:
            """None: the queries stand before the text, not in it."""
            return 0

        def layout(self, stream: str) -> MediaLayout:
            if stream not in self.streams:
                raise ConfigError(f"no stream {stream!r}; this system has {self.stream!r}")
            return self.streams[stream].encoder.layout()

        @property
        def reads_instructions_alone(self) -> bool:
            return True

        @property
        def context(self) -> int:
            return self.reader.context

        @property
        def vocabulary(self) -> int | None:
            return self.reader.vocabulary

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config: Any = config
        reader = config.reader
        assert reader.vocabulary is not None
        self.streams = nn.ModuleDict({name: stream.build(reader.width) for name, stream in config.streams.items()})
        self.media_projection = nn.Linear(reader.width, config.embedding_width)
        self.text_projection = nn.Linear(reader.width, config.embedding_width)
        self.matching_head = nn.Linear(reader.width, 2)
        self.word_head = WordHead(reader.width, reader.vocabulary, reader.activation, reader.norm_eps)
        self.temperature = nn.Parameter(torch.tensor(config.initial_temperature))
        nn.init.normal_(self.word_head.transform.weight, std=0.02)  # as all of BERT; the rest keeps PyTorch's default
        nn.init.zeros_(self.word_head.transform.bias)

    def stream(self, name: str) -> Stream:
        """The encoder and projector of a stream."""
        if name not in self.streams:
            raise ConfigError(f"no stream {name!r}; this system has {self.config.stream!r}")
        return cast(Stream, self.streams[name])

    @property
    def reader(self) -> nn.Module:
        """The Q-Former."""
        return self.stream(self.config.stream).projector

    @property
    def transformer(self) -> QueryTransformer:
        """The transformer of queries and text."""
        return cast(QueryTransformer, self.reader.transformer)

    def encode(self, batch: MultimodalBatch) -> dict[str, MediaFeatures]:
        media = batch.media[self.config.stream]
        return {
            self.config.stream: encoded(self.stream(self.config.stream).encoder, media.units, media.unit_item, media.layout)
        }

    def forward(self, batch: MultimodalBatch, media: Mapping[str, MediaFeatures] | None = None) -> SystemOutput:
        """Raises: DataError where a row holds several texts or does not show exactly one medium."""
        text, stream = batch.main, self.config.stream
        if [sample.row for sample in batch.samples] != list(range(len(text.tokens))):
            raise DataError(
                f"a fusion encoder reads one text a row, got {len(batch.samples)} in {len(text.tokens)} rows; arrange the "
                "batch into pairs, as its objectives do"
            )
        features = self.encode(batch) if media is None else media
        queries, hidden = self.read(features[stream].of_items(batch.shown(stream)), text.tokens, text.order, text.segment)
        return SystemOutput(
            hidden=hidden,
            embeddings={
                "queries": queries,
                "media": F.normalize(self.media_projection(queries).float(), dim=-1),
                "text": F.normalize(self.text_projection(hidden[:, 0]).float(), dim=-1),
            },
            heads={"text": self.words, "matching": self.matching_head},
        )

    def read(self, features: MediaFeatures, tokens: Tensor, order: Tensor, segment: Tensor) -> tuple[Tensor, Tensor]:
        """The last hidden states of queries and text, unit b beside text b.

        Shapes: units [B, L, C] and texts [B, T] -> [B, K, D], [B, T, D].
        """
        num_queries = self.config.reader.num_queries
        own = order.new_zeros(len(order), num_queries)
        rule = AttentionRule(torch.cat((own, order), 1), torch.cat((own + 1, segment), 1))
        hidden = self.transformer(features, tokens, rule)
        return hidden[:, :num_queries], hidden[:, num_queries:]

    def words(self, hidden: Tensor) -> Tensor:
        """Shapes: hidden [.., D] -> logits [.., V]."""
        table = self.transformer.token_embedding
        assert table is not None
        logits: Tensor = self.word_head(hidden, table.weight)
        return logits
