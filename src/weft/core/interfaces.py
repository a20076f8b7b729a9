"""The contracts between rooms: encoders, projectors, language models, fusions, systems, objectives.

Letters: B rows, T tokens, N media units, L features per unit, C encoder width, D model width, P media tokens, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from weft.core import config
from weft.core.batch import MultimodalBatch, TextSide
from weft.core.cache import Cache
from weft.core.errors import ConfigError
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures, MediaTokens
from weft.core.memory import Visibility
from weft.core.output import LossTerms, SystemOutput
from weft.core.sequence import TokenSequence

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class ModalityEncoder(nn.Module, ABC):
    """Media units in, features out.

    Shapes: units [N, ...] -> `MediaFeatures` with values [N, L, C].
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config, ABC):
        modality: ClassVar[str] = "image"

        @abstractmethod
        def build(self) -> ModalityEncoder: ...

        @property
        @abstractmethod
        def output_width(self) -> int:
            """C, the width of the features."""

        @property
        def pooled_width(self) -> int:
            """E, the width of `pool`'s vectors."""
            return self.output_width

        @property
        def unit_shape(self) -> tuple[int, ...]:
            """The shape of one unit at this encoder's resolution; a picture unless the encoder says otherwise."""
            size: int = getattr(self, "image_size")  # noqa: B009  # the interface has no such field, image encoders have
            return (3, size, size)

        @abstractmethod
        def layout(self) -> MediaLayout:
            """The feature grid of one unit at this encoder's resolution."""

        @property
        def omitted(self) -> Mapping[str, int]:
            """What the published model has beside this tower and the tower leaves out, such as a head, with its parameters."""
            return {}

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            """The published sizes by name."""
            return {}

    config: Any

    @abstractmethod
    def forward(self, units: Tensor, unit_item: Tensor, layout: tuple[MediaLayout, ...]) -> MediaFeatures: ...

    def pool(self, units: Tensor) -> Tensor:
        """One vector per unit, [N, E], through the full depth: what a dual encoder compares.

        Raises: ConfigError where the encoder has no pooling of its own.
        """
        raise ConfigError(f"{type(self).__name__} has no pooled output; a dual encoder needs one that has (CLIP, SigLIP)")


class TextEncoder(nn.Module, ABC):
    """A text in, one pooled vector a row out: the text tower of a dual encoder."""

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config, ABC):
        @abstractmethod
        def build(self) -> TextEncoder: ...

        @property
        @abstractmethod
        def output_width(self) -> int:
            """E, the width of the pooled vector."""

        @property
        @abstractmethod
        def vocabulary(self) -> int:
            """Rows of the token table."""

        @property
        @abstractmethod
        def context(self) -> int:
            """The longest text, in tokens."""

        @property
        def omitted(self) -> Mapping[str, int]:
            """What the published model has beside this tower and the tower leaves out, with its parameters."""
            return {}

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            """The published sizes by name."""
            return {}

    @abstractmethod
    def forward(self, text: TextSide) -> Tensor:
        """Shapes: text [B, T] -> [B, E]."""


class InputProjector(nn.Module, ABC):
    """Features of any encoder in, tokens of the language model's width out.

    Shapes: features [N, L, C] -> `MediaTokens` with values [P, D] in item order (`MediaTokens.from_units` flattens).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config, ABC):
        @abstractmethod
        def build(self, input_width: int, output_width: int) -> InputProjector: ...

        @abstractmethod
        def num_tokens(self, layout: MediaLayout) -> int:
            """Tokens that one medium of this layout becomes: arithmetic, no weights."""

        @property
        def keeps_places(self) -> bool:
            """Whether tokens stand for places of the grid, row by row; a resampler's queries read from everywhere."""
            return True

        @property
        def instruction_vocabulary(self) -> int | None:
            """Ids of the instructions that are read beside a medium, in a vocabulary of their own; None where none is read."""
            return None

    config: Any

    @abstractmethod
    def forward(self, features: MediaFeatures) -> MediaTokens: ...


class LanguageModel(nn.Module, ABC):
    """A stack of blocks over embedded tokens; every block has three slots that a fusion may fill."""

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config, ABC):
        @abstractmethod
        def build(self) -> LanguageModel: ...

        @property
        @abstractmethod
        def output_width(self) -> int:
            """D, the width of embeddings and hidden states."""

        @property
        @abstractmethod
        def vocabulary(self) -> int: ...

        @property
        @abstractmethod
        def context(self) -> int:
            """The longest sequence that the positions were made for, in tokens."""

        @property
        def window(self) -> int | None:
            """How many positions a token sees in every block, its own and those before; None for all."""
            return None

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            """The published sizes by name."""
            return {}

    slots: ClassVar[tuple[str, ...]] = ("before_attention", "before_feed_forward", "after_block")  # that its blocks have

    config: Any
    blocks: nn.ModuleList

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """Shapes: tokens [B, T] -> [B, T, D]."""

    @abstractmethod
    def forward(
        self, sequence: TokenSequence, cache: Cache | None = None, start: int = 0, stop: int | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run blocks `start` to `stop`; returns (hidden [B, T, D], memory). After the last block comes the final norm."""

    def last_hidden(self, sequence: TokenSequence, last: Tensor, cache: Cache | None = None) -> Tensor:
        """What `forward` gives for one token a row; a model may leave out what only the other tokens need.

        Shapes: last [B], an index into the row -> [B, D].
        """
        hidden, _ = self(sequence, cache)
        return hidden[torch.arange(len(last), device=last.device), last]

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """Shapes: hidden [..., D] -> logits [..., V]."""


ENCODED = "encoder"  # the name under which a decoder finds its encoder's hidden states in the memory


class EncoderDecoder(LanguageModel, ABC):
    """A language model of two halves: `encoder` reads, the model's own `embed`, `blocks` and `forward` write.

    The writing half finds what was read as a `weft.core.memory.Memory` in `memory[ENCODED]`; without one it is a language model
    like any other.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(LanguageModel.Config, ABC):
        @property
        @abstractmethod
        def start_token(self) -> int:
            """What stands before the first token that the decoder writes."""

    encoder: LanguageModel


class Fusion(nn.Module, ABC):
    """How media reach the language model: surgery once, then a straight line."""

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config, ABC):
        streams: tuple[str, ...] = ("image",)

        @abstractmethod
        def build(self) -> Fusion: ...

        @abstractmethod
        def num_positions(self, num_tokens: int) -> int:
            """Positions that a medium of `num_tokens` tokens takes in the text."""

        @property
        def visibility(self) -> Visibility | None:
            """Which media of a stream a token sees through cross-attention; None where media are tokens of the text."""
            return None

        @property
        def shares_positions(self) -> bool:
            """Whether a medium's tokens but its first and last stand at one position; else their positions count up."""
            return False

        def media_width(self, language_width: int) -> int:
            """The width of the media tokens that it takes: the language model's."""
            return language_width

    config: Any

    @abstractmethod
    def install(self, language_model: LanguageModel) -> None:
        """Change the language model once; may add parameter names, never renames, resizes or changes one."""

    @abstractmethod
    def fuse(self, sequence: TokenSequence, media: Mapping[str, MediaTokens]) -> TokenSequence: ...


class System(nn.Module, ABC):
    """Wires parts together; `forward` never branches on a family."""

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config, ABC):
        @abstractmethod
        def build(self) -> System: ...

        @abstractmethod
        def num_positions(self, stream: str, layout: MediaLayout | None = None) -> int:
            """Positions that one medium of a stream takes in the text; without a layout, at the encoder's own resolution."""

        @abstractmethod
        def layout(self, stream: str) -> MediaLayout:
            """The feature grid of one medium of a stream."""

        def visibility(self, stream: str) -> Visibility | None:
            """Which media of a stream a token sees through cross-attention; None where media are tokens of the text."""
            return None

        def shares_positions(self, stream: str) -> bool:
            """Whether the tokens of a stream's medium, but its first and last, stand at one position."""
            return False

        def followers(self, stream: str) -> tuple[str, ...]:
            """The other streams that see every medium of this one too."""
            return ()

        def instruction_vocabulary(self, stream: str) -> int | None:
            """Ids of the instructions that a stream's media are read under; None where they are read under none."""
            return None

        @property
        def reads_instructions_alone(self) -> bool:
            """Whether all of its text is in the vocabulary of instructions, as where a projector alone reads it."""
            return False

        @property
        @abstractmethod
        def context(self) -> int:
            """The longest text, in tokens, media positions included."""

        @property
        def vocabulary(self) -> int | None:
            """Rows of the token table, which a tokenizer must not exceed; None where there is no table."""
            return None

        @property
        def decoder_start(self) -> int | None:
            """The token before what a decoder writes; None for a system that reads and writes one text."""
            return None

    config: Any

    @abstractmethod
    def encode(self, batch: MultimodalBatch) -> dict[str, MediaFeatures]:
        """Run each stream's encoder once."""

    @abstractmethod
    def forward(self, batch: MultimodalBatch, media: Mapping[str, MediaFeatures] | None = None) -> SystemOutput:
        """`media` given, the encoders are not run."""


class Objective(nn.Module, ABC):
    """What a stage optimises.

    `additive` objectives sum over tokens or samples, so any split into micro-batches and ranks gives the same loss; one with
    in-batch negatives is not additive and the trainer refuses to accumulate it.
    """

    additive: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config, ABC):
        @abstractmethod
        def build(self) -> Objective: ...

    @abstractmethod
    def weights(self, batch: MultimodalBatch) -> dict[str, Tensor]:
        """What normalises each term; needs no forward."""

    @abstractmethod
    def forward(self, system: System, batch: MultimodalBatch) -> LossTerms: ...

    def across(self, group: ProcessGroup) -> None:
        """Compare the samples of all ranks of a process group from now on; called once by a trainer of several ranks.

        Every rank then gives its share: the sums, the weights and the gradients of all ranks, added, are those of one rank
        that holds the whole batch. An additive objective does so as it is.

        Raises: ConfigError where in-batch negatives cannot be compared across ranks.
        """
        if not self.additive:
            raise ConfigError(f"{type(self).__name__} compares the samples of one rank's batch only; train it on one rank")

    def after_step(self, system: System) -> None:
        """Called after every optimizer step."""
