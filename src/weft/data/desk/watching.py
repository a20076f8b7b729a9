"""Watching the desk: questions about what moves, what appears, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from weft.core.conversation import Conversation, Media
from weft.core.errors import ConfigError
from weft.data.dataset import Dataset
from weft.data.desk.asking import Asking, question
from weft.data.desk.clips import NUM_FRAMES, NUM_STEPS, Clip, sample_clip
from weft.data.desk.dice import Dice
from weft.data.desk.questions import Question, with_article
from weft.data.desk.scans import Split


def direction(clip: Clip, dice: Dice) -> Question | None:
    """Which way the moving digit goes; no single frame tells."""
    if clip.direction is None:
        return None
    return question("direction", dice.choice(("Which way does it move?", "Where does the digit go?")), clip.direction)


def moving_ink(clip: Clip, dice: Dice) -> Question | None:
    """The ink of the digit that moves, among others at rest."""
    if clip.moving is None or len(clip.digits) < 2:
        return None
    return question("moving_ink", dice.choice(("Which colour moves?", "In which ink is what moves?")), clip.moving.ink)


def moving_digit(clip: Clip, dice: Dice) -> Question | None:
    """The digit that moves."""
    if clip.moving is None:
        return None
    return question("moving_digit", dice.choice(("Which digit moves?", "Name the digit that moves.")), str(clip.moving.value))


def first_ink(clip: Clip, dice: Dice) -> Question | None:
    """The ink of what appears first, of at least two."""
    if not _several_appear(clip):
        return None
    return question("first_ink", dice.choice(("Which colour comes first?", "Name the first colour.")), clip.in_order[0].ink)


def last_ink(clip: Clip, dice: Dice) -> Question | None:
    """The ink of what appears last, of at least two."""
    if not _several_appear(clip):
        return None
    return question("last_ink", dice.choice(("Which colour comes last?", "Name the last colour.")), clip.in_order[-1].ink)


def order(clip: Clip, dice: Dice) -> Question | None:
    """Whether one digit appears before another; the pair comes in random order."""
    if not _several_appear(clip):
        return None
    one, other = dice.sample(clip.in_order, 2)
    truth = "yes" if clip.in_order.index(one) < clip.in_order.index(other) else "no"
    ask = dice.choice(("Does {} come before {}?", "Is {} there before {}?"))
    return question("order", ask.format(one.ink, other.ink), truth)


def count(clip: Clip, dice: Dice) -> Question:
    """The number of digits of the whole film."""
    return question("count", dice.choice(("How many digits are there?", "Count the digits.")), str(len(clip.digits)))


def narration(clip: Clip, dice: Dice) -> Question:
    """What happens, told in order: a caption of the whole film."""
    ask = dice.choice(("Tell what happens.", "Describe the film."))
    if clip.moving is None:
        return question("narration", ask, ", then ".join(with_article(digit) for digit in clip.in_order))
    rest = [f", {with_article(digit)} rests" for digit in clip.digits if digit is not clip.moving]
    return question("narration", ask, f"{with_article(clip.moving)} goes {clip.direction}{''.join(rest)}")


def _several_appear(clip: Clip) -> bool:
    return clip.mover is None and len(clip.digits) > 1


WATCHING: dict[str, Callable[[Clip, Dice], Question | None]] = {
    "direction": direction,
    "moving_ink": moving_ink,
    "moving_digit": moving_digit,
    "first_ink": first_ink,
    "last_ink": last_ink,
    "order": order,
    "count": count,
    "narration": narration,
}
"""Every question type by its stable name."""
_WORLD = 13


def watching(split: Split, seed: int = 0, num_frames: int = NUM_FRAMES, canvas: int = 64) -> Asking[Clip]:
    """The stream of films. Held-out: no scan, no layout that a film starts from, and no draw is shared by two splits."""
    return Asking(
        "desk-clips",
        _WORLD,
        split,
        seed,
        lambda dice: sample_clip(dice, split),
        lambda clip, key: (Media(clip.frames(num_frames, canvas), "video"),),
        WATCHING,
    )


class DeskWatching(Dataset):
    """Dialogues about films of the desk, without end; `epoch` says how many make one by convention."""

    endless: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        split: Split = "train"
        seed: int = 0
        num_turns: int = 4
        mix: Mapping[str, float] = field(default_factory=dict)  # weight by question type; empty: every type equally
        num_frames: int = NUM_FRAMES
        canvas: int = 64
        epoch: int = 100_000

        def __post_init__(self) -> None:
            if self.num_frames < NUM_STEPS:
                raise ConfigError(f"things appear at {NUM_STEPS} moments of a film, so it has at least as many frames")
            watching(self.split, self.seed).weights(self.mix)

        def build(self) -> DeskWatching:
            return DeskWatching(self)

    def __init__(self, config: Config) -> None:
        self.config = config
        self.stream = watching(config.split, config.seed, config.num_frames, config.canvas)

    def __len__(self) -> int:
        return self.config.epoch

    def __getitem__(self, index: int) -> Conversation:
        return self.stream.dialogue(index, self.config.num_turns, self.config.mix)
