"""The desk's sounds are what their captions say, the same everywhere, and held-out rows are never heard in training."""

import zlib

import numpy as np
import pytest

from weft.core.errors import ConfigError
from weft.data.desk.sounds import EVERY_SOUND, PITCHES_HZ, SAMPLE_RATE_HZ, DeskSounds, Sound

FIRST = ("a high buzz", 1684908721)


def heard(index: int, **config):
    conversation = DeskSounds.Config(**config).build()[index]
    (medium,) = conversation.media()
    return medium.source.samples, conversation.messages[1].parts[0].text


def sounds_of(text: str) -> tuple[Sound, ...]:
    return tuple(Sound(*name.split()[1:]) for name in text.split(", then "))


def strongest_hz(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE_HZ)[spectrum.argmax()])


def test_a_single_sound_has_the_pitch_of_its_caption():
    alone = [(s, sounds_of(text)[0]) for s, text in (heard(i) for i in range(120)) if ", then" not in text]
    assert {sound for _, sound in alone} == set(EVERY_SOUND)
    for samples, sound in alone:
        off = strongest_hz(samples) / PITCHES_HZ[sound.pitch]
        # pitches are drawn within 5 percent; a hiss is strongest anywhere in its band of some 400 Hz
        assert abs(off - 1) < (0.06 if sound.kind != "hiss" else 0.06 + 400 / PITCHES_HZ[sound.pitch]), sound


def test_recordings_are_the_same_on_every_machine():
    """Rounded to 16 bits, for sines may differ in the last place."""
    samples, text = heard(7)
    assert text == FIRST[0] and zlib.crc32((samples * 2000).round().astype("<i2").tobytes()) == FIRST[1]
    assert samples.dtype == np.float32 and len(samples) == 9600 and np.abs(samples).max() < 1
    assert not np.array_equal(samples, heard(7, seed=1)[0]) and not np.array_equal(samples, heard(8)[0])


def test_held_out_rows_are_in_no_other_split():
    rows = {split: {heard(i, split=split, seconds=0.3)[1] for i in range(300)} for split in ("train", "validation", "test")}
    assert not (rows["train"] & rows["validation"] or rows["train"] & rows["test"] or rows["validation"] & rows["test"])
    assert all(len(texts) > 100 for texts in rows.values())


def test_what_cannot_be_played_is_refused():
    with pytest.raises(ConfigError, match=r"3 sounds take at least 0\.3 seconds"):
        DeskSounds.Config(seconds=0.2)
    with pytest.raises(IndexError):
        DeskSounds.Config().build()[-1]
