"""Digits that are said: the same everywhere, by other speakers in every split, and every answer is true of what is said."""

import zlib

import numpy as np
import pytest
import torch

from weft.core.conversation import Media, Text
from weft.core.errors import ConfigError
from weft.data.desk.dice import Dice
from weft.data.desk.listening import LISTENING, DeskListening, Heard, listening
from weft.data.desk.speech import (
    MAX_WORDS,
    NUM_SPEAKERS,
    SAMPLE_RATE_HZ,
    WORDS,
    Utterance,
    row_class,
    sample_utterance,
    say,
    speaker,
    speakers,
)
from weft.data.log_mel import log_mel

SPLITS = ("train", "validation", "test")


def spoken(*digits, by, seed=0, seconds=1.0):
    return say(Utterance(digits, by), Dice(5, seed), np.random.PCG64(seed), seconds)


def test_recordings_are_the_same_on_every_machine():
    """Rounded to steps of 1 / 500, for sines may differ in the last place."""
    (medium,) = DeskListening.Config().build()[3].media()
    samples = medium.source.samples
    assert samples.dtype == np.float32 and len(samples) == SAMPLE_RATE_HZ and np.abs(samples).max() < 1
    assert zlib.crc32((samples * 500).round().astype("<i2").tobytes()) == 2677245713


def test_no_speaker_and_no_row_is_in_two_splits():
    assert sorted(speaker for split in SPLITS for speaker in speakers(split)) == list(range(NUM_SPEAKERS))
    rows = {split: {sample_utterance(Dice(1, i), split).digits for i in range(400)} for split in SPLITS}
    several = {split: {row for row in found if len(row) > 1} for split, found in rows.items()}
    assert not (several["train"] & several["validation"] or several["train"] & several["test"])
    assert not several["validation"] & several["test"]
    assert {row_class(row) for row in several["train"]} == {0, 1} and {row_class(row) for row in several["test"]} == {3}


def test_every_split_hears_as_many_high_voices_as_low_ones():
    for split in SPLITS:
        registers = [speaker(id).register for id in speakers(split)]
        assert registers.count("high") == registers.count("low") > 0
    assert max(speaker(id).pitch_hz for id in range(NUM_SPEAKERS) if speaker(id).register == "low") < 140
    assert min(speaker(id).pitch_hz for id in range(NUM_SPEAKERS) if speaker(id).register == "high") > 180


def test_the_longest_row_of_the_slowest_speaker_fits_into_a_clip():
    slowest = max(range(NUM_SPEAKERS), key=lambda id: speaker(id).tempo)
    for seed in range(20):
        samples = spoken(*(6,) * MAX_WORDS, by=slowest, seed=seed)
        assert np.abs(samples[-80:]).max() < 0.02, "the last word has ended, what is left is noise"


def test_words_differ_more_than_their_speakers_do():
    """The nearest word of one speaker, by log-mel frames, is mostly the same word of another: there is something to be learned
    that a new voice shares."""
    low = [id for id in speakers("train") if speaker(id).register == "low"][:4]

    def features(digit, by):
        return log_mel(torch.from_numpy(spoken(digit, by=by, seconds=0.3)[-4800:]), 40).mean(1)

    known, other = ({d: features(d, by) for d in range(10)} for by in low[:2])
    right = sum(min(known, key=lambda d: float((known[d] - heard).square().sum())) == digit for digit, heard in other.items())
    assert len(WORDS) == 10 and right >= 4  # chance is 1


@pytest.mark.parametrize("kind", LISTENING)
def test_answers_are_true(kind):
    stream = listening("train", kind=kind)
    asked = {}
    for index in range(200):
        heard = stream.sample(Dice(9, index))
        for type, ask in stream.questions.items():
            question = ask(heard, Dice(3, index))
            if question is not None:
                asked[type] = asked.get(type, 0) + 1
                assert question.truth == true_answer(type, heard, question.prompt[0].text)
    assert set(asked) == set(LISTENING[kind])


def true_answer(type, heard: Heard, prompt):
    digits = [str(digit) for digit in heard.digits]
    named = [word.strip("?.") for word in prompt.split() if word.strip("?.").isdigit()]
    shown = [] if heard.scene is None else [(str(thing.value), thing.ink) for thing in heard.scene.digits]
    return {
        "first": lambda: digits[0],
        "last": lambda: digits[-1],
        "count": lambda: str(len(digits)),
        "presence": lambda: "yes" if named[0] in digits else "no",
        "order": lambda: "yes" if "".join(digits).find(named[0]) < "".join(digits).find(named[1]) else "no",
        "transcript": lambda: " ".join(digits),
        "voice": lambda: "high" if speaker(heard.utterance.speaker).pitch_hz > 160 else "low",
        "shown": lambda: "yes" if digits[0] in [value for value, _ in shown] else "no",
        "ink": lambda: dict(shown)[digits[0]],
    }[type]()


def test_a_dialogue_plays_its_recording_once_and_a_mix_chooses_its_questions():
    dataset = DeskListening.Config(num_turns=3, mix={"voice": 1.0, "count": 1.0}).build()
    for index in range(20):
        conversation = dataset[index]
        assert [medium.stream for medium in conversation.media()] == ["audio"]
        assert isinstance(conversation.messages[0].parts[0], Media) and 2 <= len(conversation.messages) <= 6
        assert all(isinstance(part, Text) for message in conversation.messages[1:] for part in message.parts)
    both = DeskListening.Config(kind="speech_and_picture").build()[0]
    assert [medium.stream for medium in both.media()] == ["image", "audio"]


def test_yes_and_no_are_equally_likely_where_they_are_answers():
    for kind, types in (("speech", ("presence", "order")), ("speech_and_picture", ("shown",))):
        sampled = listening("test", kind=kind)
        for type in types:
            truths = list(_truths(sampled, type, 400))
            assert 0.42 < truths.count("yes") / len(truths) < 0.58  # 3 standard deviations of a fair coin


def _truths(stream, type, number):
    index = found = 0
    while found < number:
        question = stream.questions[type](stream.sample(Dice(21, index)), Dice(22, index))
        index += 1
        if question is not None:
            found += 1
            yield question.truth


def test_items_are_as_many_as_wanted_each_about_a_recording_of_its_own():
    items = listening("test").items(5)
    assert [item.type for item in items] == [type for type in LISTENING["speech"] for _ in range(5)]
    assert len({item.id for item in items}) == len(items)
    heard = {next(item.conversation.media()).source.samples.tobytes() for item in items}
    assert len(heard) == len(items)
    assert all(len(item.conversation.messages) == 1 for item in items)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"kind": "singing"}, "unknown kind of listening 'singing'; known: speech, speech_and_picture"),
        ({"mix": {"frist": 1.0}}, "did you mean 'first'"),
        ({"split": "tset"}, "unknown desk split"),
        ({"seconds": 0.5}, "the longest row of words takes 1.0 seconds"),
    ],
)
def test_what_cannot_be_asked_is_refused(settings, line):
    with pytest.raises(ConfigError, match=line.replace(".", r"\.")):
        DeskListening.Config(**settings)
