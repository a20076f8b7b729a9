"""Listening beside the desk: questions about digits that are said, and about a desk that shows or lacks what is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from weft.core.conversation import Conversation, Media
from weft.core.errors import ConfigError
from weft.data.audio import Waveform
from weft.data.dataset import Dataset
from weft.data.desk.asking import Asking, question
from weft.data.desk.dice import Dice
from weft.data.desk.draw import draw
from weft.data.desk.questions import Question
from weft.data.desk.scans import Split
from weft.data.desk.scene import Scene, sample_scene
from weft.data.desk.speech import CLIP_SECONDS, SAMPLE_RATE_HZ, Utterance, sample_utterance, say, speaker, speakers

Kind = Literal["speech", "speech_and_picture"]


@dataclass(frozen=True)
class Heard:
    """What is said, and the desk that is shown beside it where there is one."""

    utterance: Utterance
    scene: Scene | None = None

    @property
    def digits(self) -> tuple[int, ...]:
        return self.utterance.digits


def first(heard: Heard, dice: Dice) -> Question | None:
    """The first of at least two digits."""
    if len(heard.digits) < 2:
        return None
    return question("first", dice.choice(("Which digit is said first?", "Name the first digit.")), str(heard.digits[0]))


def last(heard: Heard, dice: Dice) -> Question | None:
    """The last of at least two digits."""
    if len(heard.digits) < 2:
        return None
    return question("last", dice.choice(("Which digit is said last?", "Name the last digit.")), str(heard.digits[-1]))


def count(heard: Heard, dice: Dice) -> Question:
    """The number of digits."""
    return question("count", dice.choice(("How many digits are said?", "Count the digits.")), str(len(heard.digits)))


def presence(heard: Heard, dice: Dice) -> Question:
    """Whether a digit is said: yes half of the time."""
    said = sorted(set(heard.digits))
    truth = "yes" if dice.coin() else "no"
    value = dice.choice(said if truth == "yes" else [value for value in range(10) if value not in said])
    return question("presence", dice.choice(("Is any {} said?", "Do you hear any {}?")).format(value), truth)


def order(heard: Heard, dice: Dice) -> Question | None:
    """Whether one digit is said before another, each of them once; the pair comes in random order."""
    once = [value for value in heard.digits if heard.digits.count(value) == 1]
    if len(once) < 2:
        return None
    one, other = dice.sample(once, 2)
    truth = "yes" if heard.digits.index(one) < heard.digits.index(other) else "no"
    return question("order", dice.choice(("Is the {} before the {}?", "Is {} said before {}?")).format(one, other), truth)


def transcript(heard: Heard, dice: Dice) -> Question:
    """Every digit, in order."""
    ask = dice.choice(("Write down what is said.", "Which digits are said?"))
    return question("transcript", ask, " ".join(map(str, heard.digits)))


def voice(heard: Heard, dice: Dice) -> Question:
    """Whether the speaker's voice is high or low."""
    ask = dice.choice(("Is the voice high or low?", "What kind of voice is it?"))
    return question("voice", ask, speaker(heard.utterance.speaker).register)


def shown(heard: Heard, dice: Dice) -> Question | None:
    """Whether the digit that is said lies on the desk."""
    assert heard.scene is not None
    truth = "yes" if heard.digits[0] in [digit.value for digit in heard.scene.digits] else "no"
    return question("shown", dice.choice(("Is what is said on the desk?", "Does the desk show what is said?")), truth)


def ink(heard: Heard, dice: Dice) -> Question | None:
    """The ink of the digit that is said, where one such digit lies on the desk."""
    assert heard.scene is not None
    found = [digit for digit in heard.scene.unique_values() if digit.value == heard.digits[0]]
    if not found:
        return None
    return question("ink", dice.choice(("Which colour has what is said?", "In which ink is what is said?")), found[0].ink)


_OF_SPEECH: dict[str, Callable[[Heard, Dice], Question | None]] = {
    "first": first,
    "last": last,
    "count": count,
    "presence": presence,
    "order": order,
    "transcript": transcript,
    "voice": voice,
}
LISTENING: dict[Kind, dict[str, Callable[[Heard, Dice], Question | None]]] = {
    "speech": _OF_SPEECH,
    "speech_and_picture": {"shown": shown, "ink": ink},
}
"""The question types of each kind. A picture is asked about through what is said alone: neither medium answers by itself."""
_WORLDS: dict[Kind, int] = {"speech": 11, "speech_and_picture": 12}
_NOISE, _SYNTHESIS = 7, 8


def listening(split: Split, seed: int = 0, kind: Kind = "speech", seconds: float = CLIP_SECONDS) -> Asking[Heard]:
    """The stream of a kind. Held-out: no speaker, no row of two or three digits and no draw is shared by two splits, and where
    there is a picture, no scan and no layout."""

    def sample(dice: Dice) -> Heard:
        if kind == "speech":
            return Heard(sample_utterance(dice, split))
        scene, said_by = sample_scene(dice, split, max_shapes=0), dice.choice(speakers(split))
        there = sorted({digit.value for digit in scene.digits})
        absent = [value for value in range(10) if value not in there]
        return Heard(Utterance((dice.choice(there if dice.coin() else absent),), said_by), scene)

    def show(heard: Heard, key: tuple[int, ...]) -> tuple[Media, ...]:
        noise = np.random.PCG64(np.random.SeedSequence((*key, _NOISE)))
        samples = say(heard.utterance, Dice(*key, _SYNTHESIS), noise, seconds)
        recording = Media(Waveform(samples, SAMPLE_RATE_HZ), "audio")
        return (recording,) if heard.scene is None else (Media(draw(heard.scene)), recording)

    if kind not in LISTENING:
        raise ConfigError(f"unknown kind of listening {kind!r}; known: {', '.join(LISTENING)}")
    return Asking(f"desk-{kind.replace('_', '-')}", _WORLDS[kind], split, seed, sample, show, LISTENING[kind])


class DeskListening(Dataset):
    """Dialogues about digits that are said, without end; `epoch` says how many make one by convention.

    `kind` is "speech" (a recording and several turns) or "speech_and_picture" (a desk and one digit that is said: each question
    takes both).
    """

    endless: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        split: Split = "train"
        kind: Kind = "speech"
        seed: int = 0
        num_turns: int = 4
        mix: Mapping[str, float] = field(default_factory=dict)  # weight by question type; empty: every type equally
        seconds: float = CLIP_SECONDS
        epoch: int = 100_000

        def __post_init__(self) -> None:
            if self.seconds < CLIP_SECONDS:
                raise ConfigError(f"the longest row of words takes {CLIP_SECONDS} seconds, got {self.seconds}")
            listening(self.split, self.seed, self.kind).weights(self.mix)

        def build(self) -> DeskListening:
            return DeskListening(self)

    def __init__(self, config: Config) -> None:
        self.config = config
        self.stream = listening(config.split, config.seed, config.kind, config.seconds)

    def __len__(self) -> int:
        return self.config.epoch

    def __getitem__(self, index: int) -> Conversation:
        return self.stream.dialogue(index, self.config.num_turns, self.config.mix)
