"""Films of the desk: the same everywhere, of each split's own handwriting, and every answer is true of what is shown."""

import zlib

import numpy as np
import pytest

from weft.core.errors import ConfigError
from weft.data.desk.clips import DIRECTIONS, NUM_FRAMES, NUM_STEPS, sample_clip
from weft.data.desk.dice import Dice
from weft.data.desk.scene import GRID, layout_class
from weft.data.desk.watching import WATCHING, DeskWatching, watching
from weft.data.video import sampled_frames

SPLITS = ("train", "validation", "test")


def clips(split="train", number=200):
    return [sample_clip(Dice(4, index), split) for index in range(number)]


def test_films_are_the_same_on_every_machine():
    (medium,) = DeskWatching.Config().build()[2].media()
    assert medium.stream == "video" and medium.source.shape == (NUM_FRAMES, 64, 64, 3)
    assert zlib.crc32(medium.source.tobytes()) == 2130323472


def test_no_scan_is_in_two_splits():
    scans = {split: {digit.scan for clip in clips(split) for digit in clip.digits} for split in SPLITS}
    assert all(len(found) > 50 for found in scans.values())
    assert not (scans["train"] & scans["validation"] or scans["train"] & scans["test"] or scans["validation"] & scans["test"])


def test_films_of_things_that_appear_end_in_the_splits_own_layouts():
    classes = {split: {layout_class(clip.scene.layout) for clip in clips(split) if clip.mover is None} for split in SPLITS}
    assert classes == {"train": {0, 1}, "validation": {2}, "test": {3}}


def test_what_moves_goes_its_way_within_the_picture_and_the_rest_stays():
    seen = set()
    for clip in clips():
        if clip.mover is None:
            continue
        first, last = clip.at(0, NUM_FRAMES), clip.at(NUM_FRAMES - 1, NUM_FRAMES)
        start, end = (scene.digits[-1].box for scene in (first, last))
        moved = tuple(np.sign(np.round((np.array(end) - np.array(start)) * GRID)).astype(int)[:2])
        assert moved == DIRECTIONS[clip.direction] and first.digits[:-1] == last.digits[:-1]
        assert first.digits[-1].value == clip.moving.value
        for number in range(NUM_FRAMES):
            assert all(-1e-9 <= corner <= 1 + 1e-9 for corner in clip.at(number, NUM_FRAMES).digits[-1].box)
        seen.add(clip.direction)
    assert seen == set(DIRECTIONS)


def test_what_appears_is_there_from_its_moment_on_and_four_frames_show_every_moment():
    for clip in clips():
        if clip.mover is not None:
            continue
        counts = [len(clip.at(number, NUM_FRAMES).digits) for number in range(NUM_FRAMES)]
        assert counts == sorted(counts) and counts[-1] == len(clip.digits)
        sampled = [counts[number] for number in sampled_frames(NUM_FRAMES, NUM_STEPS)]
        assert all(later - earlier <= 1 for earlier, later in zip([0, *sampled], sampled, strict=False))


class Seen:
    """What the frames of a film show alone: which inks are there since when, and how far each goes."""

    def __init__(self, clip):
        self.shown = [{digit.ink: digit for digit in clip.at(number, NUM_FRAMES).digits} for number in range(NUM_FRAMES)]
        self.since = {ink: next(n for n, there in enumerate(self.shown) if ink in there) for ink in self.shown[-1]}
        ways = {ink: np.subtract(self.shown[-1][ink].box, digit.box)[:2] for ink, digit in self.shown[0].items()}
        self.ways = {ink: way_of(way) for ink, way in ways.items() if np.abs(way).max() > 0.1}

    @property
    def mover(self):
        (ink,) = self.ways
        return ink

    def answer(self, type, prompt):
        since = self.since
        inks = [word.strip("?") for word in prompt.split() if word.strip("?") in since]
        return {
            "direction": lambda: self.ways[self.mover],
            "moving_ink": lambda: self.mover,
            "moving_digit": lambda: str(self.shown[0][self.mover].value),
            "first_ink": lambda: min(since, key=since.get),
            "last_ink": lambda: max(since, key=since.get),
            "order": lambda: "yes" if since[inks[0]] < since[inks[1]] else "no",
            "count": lambda: str(len(since)),
            "narration": self.told,
        }[type]()

    def told(self):
        named = {ink: f"{'an' if ink == 'orange' else 'a'} {ink} {digit.value}" for ink, digit in self.shown[-1].items()}
        if not self.ways:
            return ", then ".join(named[ink] for ink in sorted(self.since, key=self.since.get))
        rest = [f", {words} rests" for ink, words in named.items() if ink != self.mover]
        return f"{named[self.mover]} goes {self.ways[self.mover]}{''.join(rest)}"


def test_answers_are_true_of_the_frames():
    stream, asked = watching("train"), set()
    for index in range(200):
        clip = stream.sample(Dice(9, index))
        seen = Seen(clip)
        for type, ask in stream.questions.items():
            question = ask(clip, Dice(3, index))
            if question is not None:
                asked.add(type)
                assert question.truth == seen.answer(type, question.prompt[0].text)
    assert asked == set(WATCHING)


def way_of(way):
    across, down = np.round(way * GRID).astype(int)
    return next(name for name, step in DIRECTIONS.items() if step == (np.sign(across), np.sign(down)))


def test_items_are_as_many_as_wanted_each_about_a_film_of_its_own():
    items = watching("test").items(4, ("direction", "order"))
    assert [item.type for item in items] == ["direction"] * 4 + ["order"] * 4
    assert len({next(item.conversation.media()).source.tobytes() for item in items}) == len(items)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"mix": {"diretcion": 1.0}}, "did you mean 'direction'"),
        ({"num_frames": 2}, "things appear at 4 moments of a film"),
        ({"split": "tset"}, "unknown desk split"),
    ],
)
def test_what_cannot_be_shown_is_refused(settings, line):
    with pytest.raises(ConfigError, match=line):
        DeskWatching.Config(**settings)


def test_indices_count_from_zero():
    with pytest.raises(IndexError):
        DeskWatching.Config().build()[-1]
    with pytest.raises(ConfigError, match="at least 1 turn"):
        DeskWatching.Config(num_turns=0).build()[0]
