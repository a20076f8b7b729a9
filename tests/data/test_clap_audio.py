"""What both systems called CLAP hear: against the `transformers` extractor, against sums written out, and by properties."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from weft.core.errors import ConfigError
from weft.core.layout import MediaLayout
from weft.data import clap_audio
from weft.data.audio import Waveform
from weft.data.clap_audio import ClapAudioTransform

LAION, MICROSOFT = (ClapAudioTransform.sizes()[name] for name in ("clap-laion", "clap-microsoft"))
GRID = MediaLayout(2, 32)


def sound(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    """A rising tone in noise that fades: loud and almost silent frames."""
    t = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(size=len(t))
    return ((np.sin(2 * np.pi * (200 + 400 * t) * t) + 0.1 * noise) * np.exp(-3 * t / seconds) * 0.5).astype(np.float32)


def heard(transform: ClapAudioTransform, samples: np.ndarray) -> torch.Tensor:
    opened = transform.open(Waveform(samples, transform.sample_rate_hz), GRID)
    assert opened.units.shape == (1, *transform.unit_shape) and opened.units.dtype == np.float32
    return transform.normalise([opened.units[0]])[0]


@pytest.mark.parametrize("lowest_hz", [0.0, 50.0])
@pytest.mark.parametrize("seconds", [10.0, 5.0, 3.7, 0.004])
def test_equals_the_extractor_of_transformers(seconds, lowest_hz):
    transformers = pytest.importorskip("transformers")
    extractor = transformers.ClapFeatureExtractor(truncation="rand_trunc", frequency_min=lowest_hz)
    samples = sound(seconds, 48_000)
    expected = torch.as_tensor(np.asarray(extractor(samples, sampling_rate=48_000)["input_features"][0])).float()
    found = heard(ClapAudioTransform(lowest_hz=lowest_hz), samples)
    assert expected.shape == (1, 1001, 64) and found.shape == (64, 1001)
    assert (found - expected[0].T).abs().max() < 1e-4  # decibels; the extractor rounds spectra to float32


@pytest.mark.parametrize("lowest_hz", [0.0, 50.0])
@pytest.mark.parametrize("seconds", [3.7, 1.3, 1.015, 1.01, 1.005, 1.0, 0.3], ids=lambda seconds: f"{seconds} s")
def test_with_fusion_it_equals_the_extractor_that_begins_its_clips_in_the_middle(monkeypatch, seconds, lowest_hz):
    """Clips of one second: long recordings, one longer by half a hop, and short ones; the extractor's draws are held."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(np.random, "choice", lambda places: places[len(places) // 2])
    extractor = transformers.ClapFeatureExtractor(truncation="fusion", frequency_min=lowest_hz, max_length_s=1)
    samples = sound(seconds, 48_000)
    result = extractor([samples, sound(9.0, 48_000)], sampling_rate=48_000)  # of a batch without a long one it makes one long
    expected = torch.as_tensor(np.asarray(result["input_features"][0])).float()
    found = heard(ClapAudioTransform(clip_seconds=1.0, lowest_hz=lowest_hz, fused=True), samples)
    assert expected.shape == (4, 101, 64) and found.shape == (5, 64, 101)
    assert (found[:4] - expected.mT).abs().max() < 1e-4  # decibels; the extractor rounds spectra to float32
    assert found[4].unique().tolist() == [float(result["is_longer"][0][0])] == [float(seconds >= 1.01)]


def test_of_a_long_recording_the_middle_of_each_third_is_heard_every_time():
    transform = ClapAudioTransform(clip_seconds=1.0, fused=True)
    samples = sound(4.0, 48_000)
    found, levels = heard(transform, samples), transform.decibels(samples)
    assert levels.shape == (64, 401)
    for view, begin in zip(found[1:4], (50, 151, 251), strict=True):  # 301 places: thirds of 101, 100 and 100
        assert torch.equal(view, levels[:, begin : begin + 101])
    assert torch.equal(found, heard(transform, samples))


def test_a_long_recording_is_the_same_in_blocks(monkeypatch):
    samples = sound(3.0, 48_000)
    whole = LAION.decibels(samples)
    monkeypatch.setattr(clap_audio, "BLOCK_FRAMES", 64)
    torch.testing.assert_close(LAION.decibels(samples), whole, rtol=0, atol=1e-5)  # float64 sums in another order


def slaney_hz(mel: float) -> float:
    """Hertz of a mel: linear up to 1 kHz, which is mel 15, then a factor of 6.4 every 27."""
    return 200 / 3 * mel if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)


def test_one_frame_of_microsofts_front_end_is_the_sum_that_its_definition_says():
    samples = sound(5.0, 44_100, seed=1)
    frame, rate, size = 301, 44_100, 1024
    window = [0.5 - 0.5 * math.cos(2 * math.pi * n / size) for n in range(size)]
    begin = 320 * frame - size // 2  # frames are centred
    power = np.abs(np.fft.rfft(np.array(window) * samples[begin : begin + size].astype(np.float64))) ** 2
    top = 15 + 27 * math.log(14_000 / 1000) / math.log(6.4)
    low = 50 * 3 / 200
    ends = [slaney_hz(low + (top - low) * i / 65) for i in range(66)]
    expected = []
    for (left, middle), (_, right) in pairwise(pairwise(ends)):
        total = 0.0
        for k in range(size // 2 + 1):
            hertz = k * rate / size
            height = min((hertz - left) / (middle - left), (right - hertz) / (right - middle))
            total += max(height, 0.0) * 2 / (right - left) * power[k]
        expected.append(10 * math.log10(max(total, 1e-10)))
    found = heard(MICROSOFT, samples)
    assert found.shape == (64, 690)
    assert np.abs(found[:, frame].numpy() - np.array(expected)).max() < 1e-3  # filters are float32


def test_a_short_clip_equals_its_repetition():
    half = sound(5.0, 48_000)
    assert torch.equal(heard(LAION, half), heard(LAION, np.tile(half, 2)))
    part = sound(2.0, 44_100)
    assert torch.equal(heard(MICROSOFT, part), heard(MICROSOFT, np.tile(part, 3)[: 5 * 44_100]))


def test_laion_repeats_whole_clips_and_ends_in_silence_and_microsoft_cuts():
    count = np.arange(1.0, 4.0)
    assert ClapAudioTransform.filled(LAION, count)[479_994:].tolist() == [1, 2, 3, 1, 2, 3]  # 480,000 is three times 160,000
    long = np.ones(200_000, np.float32)
    filled = LAION.filled(long)
    assert len(filled) == 480_000 and filled[:400_000].all() and not filled[400_000:].any()
    cut = MICROSOFT.filled(np.arange(1.0, 100_001.0))
    assert len(cut) == 220_500 and cut[100_000] == 1 and cut[-1] == 20_500


def test_of_a_long_recording_the_first_seconds_are_heard():
    samples = sound(12.0, 48_000)
    assert torch.equal(heard(LAION, samples), heard(LAION, samples[:480_000]))


def test_silence_is_the_floor_and_a_louder_recording_lies_higher_by_its_decibels():
    assert torch.equal(heard(LAION, np.zeros(1000, np.float32)), torch.full((64, 1001), -100.0))
    samples = sound(5.0, 48_000)
    quiet, loud = heard(LAION, samples), heard(LAION, samples * 2)
    audible = quiet > -90
    assert audible.any() and (loud - quiet)[audible].sub(20 * math.log10(2)).abs().max() < 1e-3  # no gain invariance


def test_other_rates_are_resampled():
    """Bands of the same recording at another rate, away from the edges that the resampling filter touches."""
    t48, t16 = np.arange(480_000) / 48_000, np.arange(160_000) / 16_000
    tone48, tone16 = (np.sin(2 * np.pi * 440 * t).astype(np.float32) for t in (t48, t16))
    direct = heard(LAION, tone48)
    other = torch.from_numpy(LAION.open(Waveform(tone16, 16_000), GRID).units[0])
    band = int(direct[:, 500].argmax())
    assert (direct[band, 10:-10] - other[band, 10:-10]).abs().max() < 0.01


def test_impossible_clips_and_bands_are_refused():
    with pytest.raises(ConfigError, match="more than 512 samples of 48000 Hz"):
        ClapAudioTransform(clip_seconds=0.01)
    with pytest.raises(ConfigError, match=r"between 0 and 22050 Hz, got 50 to 24000"):
        ClapAudioTransform(sample_rate_hz=44_100, highest_hz=24_000.0)
