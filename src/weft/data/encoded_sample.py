"""One conversation as a batch row's worth of arrays: what `Processor.encode` gives and `collate` takes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from weft.core.layout import MediaLayout
from weft.data.media_transform import MediaTransform


@dataclass(frozen=True)
class EncodedMedium:
    """One medium of a sample.

    Shapes: `units` [num_units, ...] (pictures: (1, size, size, 3) uint8), normalised by `transform` once the batch is made.
    `spans` holds the runs of positions (offset in the medium, start in the sample, length); none where the text has no place
    for media. `instruction` [T] int64 are the tokens of what is asked about it, for the projectors that read them; `targets`
    [num_units, L'] int64 what is to be said of its first L' features.
    """

    units: np.ndarray
    transform: MediaTransform
    layout: MediaLayout
    spans: tuple[tuple[int, int, int], ...] = ()
    instruction: np.ndarray | None = None
    targets: np.ndarray | None = None


@dataclass(frozen=True)
class EncodedAnswer:
    """What the decoder of an encoder-decoder reads and says. Shapes: `tokens`, `targets` [T] int64, as in `EncodedSample`."""

    tokens: np.ndarray
    targets: np.ndarray

    def cut(self, length: int | None) -> EncodedAnswer:
        """Its first `length` tokens."""
        return EncodedAnswer(self.tokens[:length], self.targets[:length])


@dataclass(frozen=True)
class EncodedSample:
    """One conversation, encoded.

    Shapes: `tokens`, `targets`, `modality` [T] int64; `targets[t]` is what the model says at t, -100 where there is no loss;
    `modality` is 1 where a medium stands; `visible[stream]` [T, 2] the first and the last medium of the sample that a token
    sees through cross-attention; `positions` [T] where they do not count up. `text` is the conversation as it was rendered,
    with one marker per medium. `weight` weighs its targets in the loss.
    For an encoder-decoder these are what its encoder reads, and `decoder` is what it writes.
    """

    tokens: np.ndarray
    targets: np.ndarray
    modality: np.ndarray
    media: dict[str, tuple[EncodedMedium, ...]] = field(default_factory=dict)
    id: str = ""
    source: str = ""
    group: str = ""
    text: str = ""
    visible: dict[str, np.ndarray] = field(default_factory=dict)
    positions: np.ndarray | None = None
    decoder: EncodedAnswer | None = None
    weight: float = 1.0

    @property
    def num_written(self) -> int:
        """Tokens of the text that the model continues."""
        return len(self.tokens) if self.decoder is None else len(self.decoder.tokens)

    @property
    def row_length(self) -> int:
        """Tokens of its longest text: the room that it takes in a row."""
        return max(len(self.tokens), self.num_written)

    def __len__(self) -> int:
        return len(self.tokens)
