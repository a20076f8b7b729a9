"""Digits that are said beside the desk: voices from a synthesiser, one source and three formants, no recording needed.

Every word goes through the vowels and consonants of its English name, so words differ as words of speech do, by the resonances
of their vowels and by noise, while pitch and timbre are the speaker's. No listener would take it for a person.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Literal, NamedTuple

import numpy as np

from weft.data.desk.dice import Dice
from weft.data.desk.scans import Split, split_code

SAMPLE_RATE_HZ = 16_000
MAX_WORDS = 3
CLIP_SECONDS = 1.0  # what the longest row of words of the slowest speaker takes, with the silence around it
Register = Literal["low", "high"]


class Phone(NamedTuple):
    """A sound of speech. Units: formants and the middle of the noise in Hz, loudness of voice and noise, length in seconds."""

    formants: tuple[float, float, float]
    voice: float
    noise: float
    noise_hz: float
    seconds: float


PHONES = {
    "i": Phone((280, 2250, 2900), 1.0, 0.0, 5500, 0.11),
    "e": Phone((550, 1800, 2500), 1.0, 0.0, 5500, 0.11),
    "a": Phone((750, 1200, 2500), 1.0, 0.0, 5500, 0.11),
    "o": Phone((480, 850, 2450), 1.0, 0.0, 5500, 0.11),
    "u": Phone((310, 700, 2250), 1.0, 0.0, 5500, 0.11),
    "n": Phone((250, 1300, 2300), 0.4, 0.0, 5500, 0.06),
    "s": Phone((300, 1700, 2600), 0.0, 0.5, 5500, 0.07),
    "z": Phone((300, 1700, 2600), 0.4, 0.3, 5500, 0.07),
    "f": Phone((300, 1100, 2300), 0.0, 0.3, 1800, 0.07),
    "t": Phone((300, 1700, 2600), 0.0, 0.4, 3500, 0.04),
}
WORDS = ("zio", "uan", "tu", "fi", "fo", "fai", "sits", "sen", "et", "nain")
"""Of each digit, what stands in for zero, one, two, three, four, five, six, seven, eight, nine."""

NUM_SPEAKERS = 80
NUM_HELD_OUT = 16
"""Speakers of the validation split, and of the test split; the rest are heard in training."""
_SPEAKER_KEY, _SPLIT_KEY = 20_261_121, 20_261_122
_NUM_CLASSES, _CLASSES = 4, ((0, 1), (2,), (3,))  # of rows of words, by split
_WORD_SECONDS, _PAUSE_SECONDS = 0.21, 0.05
_PITCH_HZ: dict[Register, tuple[float, float]] = {"low": (95.0, 135.0), "high": (185.0, 250.0)}
_STEP = 80  # samples between two settings of the synthesiser, 5 ms
_BANDWIDTH_HZ = (90.0, 120.0, 180.0)
_HIGHEST_HZ = 4000.0
_GLIDE_STEPS = 5  # how long one sound takes to become the next


@dataclass(frozen=True)
class Speaker:
    """A voice. Units: `pitch_hz`; `size` stretches the formants, `tilt` is the power by which harmonics weaken, `tempo` the
    speaker's word over the usual one, `breath` the noise in the voice."""

    register: Register
    pitch_hz: float
    size: float
    tilt: float
    tempo: float
    breath: float


@dataclass(frozen=True)
class Utterance:
    """Digits in the order in which a speaker says them."""

    digits: tuple[int, ...]
    speaker: int


@lru_cache(maxsize=NUM_SPEAKERS)
def speaker(id: int) -> Speaker:
    """The speaker of an id: every other one has a high voice, and the formants of a shorter throat."""
    dice = Dice(_SPEAKER_KEY, id)
    register: Register = "low" if id % 2 else "high"
    lowest, highest = _PITCH_HZ[register]
    pitch = lowest + (highest - lowest) * dice.uniform()
    size = (0.90 if register == "low" else 1.02) + 0.1 * dice.uniform()
    return Speaker(register, pitch, size, 0.5 + 0.7 * dice.uniform(), 0.85 + 0.3 * dice.uniform(), 0.03 * dice.uniform())


@lru_cache(maxsize=3)
def speakers(split: Split) -> tuple[int, ...]:
    """The speakers of a split, as many high voices as low ones; no two splits share one."""
    code = split_code(split)
    order = Dice(_SPLIT_KEY).sample(range(NUM_SPEAKERS // 2), NUM_SPEAKERS // 2)
    half = NUM_HELD_OUT // 2
    pairs = (order[2 * half :], order[:half], order[half : 2 * half])[code]
    return tuple(sorted(2 * pair + register for pair in pairs for register in (0, 1)))


def sample_utterance(dice: Dice, split: Split, max_words: int = MAX_WORDS) -> Utterance:
    """One to `max_words` digits by a speaker of the split; rows of two and more are of the split alone, too."""
    said_by, num_words = dice.choice(speakers(split)), dice.integer(1, max_words + 1)
    while True:
        digits = tuple(dice.integer(0, 10) for _ in range(num_words))
        if len(digits) == 1 or row_class(digits) in _CLASSES[split_code(split)]:
            return Utterance(digits, said_by)


def row_class(digits: tuple[int, ...]) -> int:
    """The residue by which a row of digits belongs to a split: their sum, weighted by their place."""
    return sum(place * digit for place, digit in enumerate(digits, 1)) % _NUM_CLASSES


def say(utterance: Utterance, dice: Dice, noise: np.random.PCG64, seconds: float = CLIP_SECONDS) -> np.ndarray:
    """The utterance as samples [seconds * 16,000] float32 within -1 and 1, somewhere in the clip and over a faint noise."""
    num_samples = round(seconds * SAMPLE_RATE_HZ)
    who = speaker(utterance.speaker)
    said = [_word(WORDS[digit], who, dice, noise) for digit in utterance.digits]
    pauses = [round(_PAUSE_SECONDS * (0.6 + 0.4 * dice.uniform()) * SAMPLE_RATE_HZ) for _ in said]
    ends = list(accumulate(len(word) + pause for word, pause in zip(said, pauses, strict=True)))
    start = dice.integer(0, max(1, num_samples - ends[-1]))
    samples = (0.001 + 0.009 * dice.uniform()) * _white(noise, num_samples)
    loudness = 0.15 + 0.2 * dice.uniform()
    for word, end, pause in zip(said, ends, pauses, strict=True):
        first = start + end - pause - len(word)
        part = samples[first : first + len(word)]
        part += loudness * word[: len(part)]
    return np.clip(samples, -1.0, 1.0).astype(np.float32)


def _word(spelling: str, who: Speaker, dice: Dice, noise: np.random.PCG64) -> np.ndarray:
    """A word as samples of a loudness near 1: harmonics of the pitch under the formants' resonance, and noise."""
    phones = [PHONES[name] for name in spelling]
    seconds = _WORD_SECONDS * who.tempo * (0.95 + 0.1 * dice.uniform())
    lengths = np.array([phone.seconds for phone in phones]) * seconds / sum(phone.seconds for phone in phones)
    steps = round(seconds * SAMPLE_RATE_HZ / _STEP)
    phone_of = np.searchsorted(np.cumsum(lengths) / seconds, (np.arange(steps) + 0.5) / steps).clip(max=len(phones) - 1)
    rows = np.array([(*phone.formants, phone.voice, phone.noise, phone.noise_hz) for phone in phones], dtype=np.float64)
    settings = _smooth(rows[phone_of])
    edges = np.minimum(1.0, np.minimum(np.arange(1, steps + 1), np.arange(steps, 0, -1)) / 3)
    num_samples = steps * _STEP
    pitch = who.pitch_hz * (0.97 + 0.06 * dice.uniform()) * np.linspace(1.05, 0.92, num_samples)
    turns = np.cumsum(pitch) / SAMPLE_RATE_HZ
    num_harmonics = int(_HIGHEST_HZ / pitch.max())
    levels = _resonance(settings[:, :3] * who.size, who, num_harmonics) * (settings[:, 3] * edges)[:, None]
    rotation = np.exp(2j * np.pi * turns)
    harmonic, voiced = np.ones_like(rotation), np.zeros(num_samples)
    for level in _per_sample(levels).T:
        harmonic *= rotation
        voiced += level * harmonic.imag
    voiced /= max(np.abs(voiced).max(), 1.0)
    hiss = np.convolve(_white(noise, num_samples), np.full(6, 0.4), "same")
    noise_level, noise_hz = _per_sample(np.stack(((settings[:, 4] + who.breath * settings[:, 3]) * edges, settings[:, 5]), 1)).T
    return np.asarray(voiced + noise_level * hiss * np.sin(2 * np.pi * np.cumsum(noise_hz) / SAMPLE_RATE_HZ))


def _resonance(formants: np.ndarray, who: Speaker, num_harmonics: int) -> np.ndarray:
    """How loud each harmonic is. Shapes: formants [steps, 3] in Hz -> [steps, num_harmonics]."""
    number = np.arange(1, num_harmonics + 1)
    away = (number * who.pitch_hz)[None, :, None] - formants[:, None, :]
    peaks = 1.0 / (1.0 + (away / np.array(_BANDWIDTH_HZ)) ** 2)
    return np.asarray((peaks @ np.array([1.0, 0.7, 0.4]) + 0.01) * number**-who.tilt)


def _smooth(rows: np.ndarray) -> np.ndarray:
    """The mean over neighbouring steps, so that a sound glides into the next."""
    half = _GLIDE_STEPS // 2
    padded = np.pad(rows, ((half, half), (0, 0)), "edge")
    return np.asarray(sum(padded[shift : shift + len(rows)] for shift in range(_GLIDE_STEPS)) / _GLIDE_STEPS)


def _per_sample(values: np.ndarray) -> np.ndarray:
    """Values a step as values a sample, along straight lines. Shapes: [steps, K] -> [steps * 80, K]."""
    ends = np.concatenate((values[:1], values, values[-1:]))
    share = ((np.arange(_STEP) + 0.5) / _STEP)[None, :, None]
    lines = ends[:-1, None] * (1.0 - share) + ends[1:, None] * share  # from the middle of a step to that of the next
    return np.asarray(lines.reshape(-1, values.shape[1])[_STEP // 2 : -_STEP // 2])


def _white(bits: np.random.PCG64, num_samples: int) -> np.ndarray:
    """Noise within -1 and 1, made of raw words, whose stream NumPy promises for good."""
    return (bits.random_raw(num_samples) >> np.uint64(11)) * 2.0**-52 - 1.0
