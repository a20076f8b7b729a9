"""Sounds from beside the desk: one to three in a row, with a caption that says which, in which order."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np

from weft.core.conversation import Conversation, Media, assistant, user
from weft.core.errors import ConfigError
from weft.data.audio import Waveform
from weft.data.dataset import Dataset
from weft.data.desk.dice import Dice
from weft.data.desk.scans import Split, split_code

SAMPLE_RATE_HZ = 16_000
PITCHES_HZ = {"low": 300.0, "middle": 900.0, "high": 2700.0}
KINDS = ("hum", "buzz", "hiss")
MAX_SOUNDS = 3
LEAST_SECONDS = 0.3
_NUM_CLASSES, _CLASSES = 4, ((0, 1), (2,), (3,))  # of rows, by split
_RAMP_SAMPLES = 160  # 10 ms, so that a sound begins and ends without a click
_SOUNDS, _NOISE = 3, 4  # beside the desk's own purposes of a random key


@dataclass(frozen=True)
class Sound:
    """A sound as its caption names it."""

    pitch: str
    kind: str

    @property
    def name(self) -> str:
        return f"a {self.pitch} {self.kind}"


EVERY_SOUND = tuple(Sound(pitch, kind) for pitch in PITCHES_HZ for kind in KINDS)


class DeskSounds(Dataset):
    """Sounds without end, each a recording in memory and its caption; the same on every machine.

    Held-out: train, validation and test share no row of two or three sounds and no draw of pitch, loudness, length or noise;
    single sounds are heard in training alone. `epoch` says how many make one by convention.
    """

    endless: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        split: Split = "train"
        seed: int = 0
        seconds: float = 0.6
        stream: str = "audio"
        epoch: int = 100_000

        def __post_init__(self) -> None:
            split_code(self.split)
            if self.seconds < LEAST_SECONDS:
                raise ConfigError(f"{MAX_SOUNDS} sounds take at least {LEAST_SECONDS} seconds, got {self.seconds}")

        def build(self) -> DeskSounds:
            return DeskSounds(self)

    def __init__(self, config: Config) -> None:
        self.config = config

    def __len__(self) -> int:
        return self.config.epoch

    def __getitem__(self, index: int) -> Conversation:
        """Recording `index`. Raises: IndexError where the index is negative."""
        if index < 0:
            raise IndexError(f"the desk's sounds are indexed from 0, got {index}")
        c = self.config
        key = (split_code(c.split), c.seed)
        dice = Dice(*key, _SOUNDS, index)
        row = sample_row(dice, c.split)
        noise = np.random.PCG64(np.random.SeedSequence((*key, _NOISE, index)))
        recording = Waveform(play(row, dice, noise, round(c.seconds * SAMPLE_RATE_HZ)), SAMPLE_RATE_HZ)
        turns = (user(Media(recording, c.stream)), assistant(caption(row)))
        return Conversation(turns, id=str(index), source=f"desk-sounds/{c.split}/{c.seed}")


def sample_row(dice: Dice, split: Split) -> tuple[Sound, ...]:
    """One to three sounds in a row, no two neighbours alike, in an order that is the split's own."""
    while True:
        row = tuple(dice.choice(EVERY_SOUND) for _ in range(dice.integer(1, MAX_SOUNDS + 1)))
        if any(one == next_one for one, next_one in pairwise(row)):
            continue
        if (split == "train") if len(row) == 1 else (row_class(row) in _CLASSES[split_code(split)]):
            return row


def row_class(row: tuple[Sound, ...]) -> int:
    """The residue by which a row belongs to a split: of the places of its sounds in the list of all, weighted by order."""
    return sum(number * EVERY_SOUND.index(sound) for number, sound in enumerate(row, 1)) % _NUM_CLASSES


def caption(row: tuple[Sound, ...]) -> str:
    """What is heard, in order."""
    return ", then ".join(sound.name for sound in row)


def play(row: tuple[Sound, ...], dice: Dice, noise: np.random.PCG64, num_samples: int) -> np.ndarray:
    """The row as samples [num_samples] float32: each sound takes its share of the time, over a faint hiss."""
    shares = [dice.uniform() + 1.0 for _ in row]
    ends = np.round(np.cumsum(shares) / sum(shares) * num_samples).astype(int).tolist()
    samples = 0.002 * _white(noise, num_samples)
    for start, end, sound in zip([0, *ends], ends, row, strict=False):
        samples[start:end] += _played(sound, dice, noise, end - start)
    return samples.astype(np.float32)


def _played(sound: Sound, dice: Dice, noise: np.random.PCG64, num_samples: int) -> np.ndarray:
    loudness, pitch = 0.1 + 0.2 * dice.uniform(), PITCHES_HZ[sound.pitch] * (0.95 + 0.1 * dice.uniform())
    phase = 2 * np.pi * (pitch / SAMPLE_RATE_HZ * np.arange(num_samples) + dice.uniform())
    if sound.kind == "hum":
        wave = np.sin(phase)
    elif sound.kind == "buzz":  # the odd harmonics of a square, as far as the rate carries them
        wave = sum(np.sin(n * phase) / n for n in range(1, int(SAMPLE_RATE_HZ / 2 / pitch) + 1, 2))
    else:  # noise in a band around the pitch
        smooth = np.convolve(_white(noise, num_samples), np.full(40, 1 / np.sqrt(40)), "same")
        wave = 2.0 * smooth * np.sin(phase)
    rise = np.minimum(1.0, np.arange(1, num_samples + 1) / _RAMP_SAMPLES)
    return np.asarray(loudness * wave * rise * rise[::-1])


def _white(bits: np.random.PCG64, num_samples: int) -> np.ndarray:
    """Noise within -1 and 1, made of raw words, whose stream NumPy promises for good."""
    return (bits.random_raw(num_samples) >> np.uint64(11)) * 2.0**-52 - 1.0
