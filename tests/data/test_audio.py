"""Recordings: read in every form, refused with the file's name, and at the log-mel values that `transformers` gives."""

import importlib.util
import io
import struct
import wave
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_training import VOCABULARY, tokenizer

from weft.core import config
from weft.core.conversation import Conversation, Media, assistant, user
from weft.core.errors import ConfigError, DataError
from weft.core.layout import MediaLayout
from weft.data.audio import AudioTransform, Waveform, WaveformTransform, open_audio
from weft.data.clap_audio import ClapAudioTransform
from weft.data.collate import collate
from weft.data.log_mel import log_mel
from weft.data.processor import Processor
from weft.data.resampling import resample
from weft.encoders.whisper import Whisper
from weft.fusion.token_concatenation import TokenConcatenation
from weft.language_models.decoder import Decoder
from weft.projectors.linear import Linear
from weft.systems.multimodal_lm import MultimodalLM, Stream

RATE = 16_000


def tone(hertz: float, seconds: float = 0.5, rate: int = RATE) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def speech_like(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise whose loudness and colour change, with a rest of digital silence."""
    random = np.random.default_rng(seed)
    samples = np.convolve(random.standard_normal(round(seconds * RATE)), [1, 0.6, 0.2], "same") * 0.1
    samples *= np.abs(np.sin(np.arange(len(samples)) / 3000))
    samples[len(samples) // 2 : len(samples) // 2 + 4000] = 0
    return samples.astype(np.float32)


def wav(data: bytes, encoding: int, channels: int, rate: int, bits: int, size: int | None = None) -> bytes:
    """A WAV file written by hand, with a chunk of an odd length that readers must skip."""
    frame = channels * bits // 8
    chunks = b"fmt " + struct.pack("<IHHIIHH", 16, encoding, channels, rate, rate * frame, frame, bits)
    chunks += b"LIST" + struct.pack("<I", 3) + b"abc\0"
    chunks += b"data" + struct.pack("<I", len(data) if size is None else size) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def encoded(samples: np.ndarray, encoding: int, bits: int) -> bytes:
    if encoding == 3:
        return samples.astype(f"<f{bits // 8}").tobytes()
    if bits == 8:
        return (samples * 128 + 128).round().clip(0, 255).astype(np.uint8).tobytes()
    whole = (samples.astype(np.float64) * 2 ** (bits - 1)).round().astype("<i4")
    return b"".join(int(v).to_bytes(4, "little", signed=True)[: bits // 8] for v in whole)


@pytest.mark.parametrize(("encoding", "bits"), [(1, 8), (1, 16), (1, 24), (1, 32), (3, 32), (3, 64)])
def test_every_encoding_gives_the_samples_back_within_its_last_bit(encoding, bits):
    samples = tone(440, 0.01)
    found = open_audio(wav(encoded(samples, encoding, bits), encoding, 1, RATE, bits))
    assert found.sample_rate_hz == RATE
    assert np.abs(found.samples - samples).max() <= (2.0 ** (1 - min(bits, 24)) if encoding == 1 else 0)


def test_what_the_standard_library_writes_is_read(tmp_path):
    samples = tone(440, 0.1)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((2, 2, 48_000, 0, "NONE", ""))
        file.writeframes((np.stack((samples, -samples / 2), 1) * 32768).astype("<i2").tobytes())
    found = open_audio(tmp_path / "a.wav")
    assert found.sample_rate_hz == 48_000
    np.testing.assert_allclose(found.samples, samples / 4, atol=2**-15)  # mono is the mean of the channels


def test_a_file_whose_size_is_unknown_and_an_extensible_header_are_read():
    data = encoded(tone(440, 0.01), 1, 16)
    assert len(open_audio(wav(data, 1, 1, RATE, 16, size=0xFFFFFFFF)).samples) == 160
    body = struct.pack("<HHIIHH", 0xFFFE, 1, RATE, RATE * 2, 2, 16) + struct.pack("<HHI", 22, 16, 4)
    body += struct.pack("<H", 1) + bytes(14)  # the encoding proper stands at the start of a 16-byte name
    chunks = b"fmt " + struct.pack("<I", len(body)) + body + b"data" + struct.pack("<I", len(data)) + data
    assert len(open_audio(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks).samples) == 160


def test_only_the_seconds_asked_for_are_read():
    file = wav(encoded(tone(440, 0.5), 1, 16), 1, 1, RATE, 16)
    assert len(open_audio(file, seconds=0.1).samples) == 1600
    assert len(open_audio(Waveform(tone(440, 0.5), RATE), seconds=0.1).samples) == 1600


NAN = np.array([0, 0.1, np.nan, 0.2], np.float32)
GOOD = wav(encoded(tone(440, 0.01), 1, 16), 1, 1, RATE, 16)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is an empty file"),
        (wav(b"", 1, 1, RATE, 16), "holds no samples"),
        (GOOD[:-20], "is cut off: 300 bytes of samples where its header promises 320"),
        (GOOD[:20], "is cut off"),
        (GOOD[:36], "is cut off"),
        (wav(encoded(NAN, 3, 32), 3, 1, RATE, 32), r"not finite at 0\.000 s \(sample 2\)"),
        (wav(bytes(8), 7, 1, RATE, 8), "encoding 7 with 8 bits"),
        (wav(bytes(8), 1, 0, RATE, 16), "damaged"),
        (b"RIFF\x10\0\0\0WAVEdata\4\0\0\0abcd", "samples come before their format"),
    ],
)
def test_a_bad_file_is_refused_by_its_name(tmp_path, content, complaint):
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"bad\.wav .*{complaint}"):
        open_audio(path)


@pytest.mark.parametrize(
    "transform", [AudioTransform(), WaveformTransform(), ClapAudioTransform()], ids=lambda t: type(t).__name__
)
@pytest.mark.parametrize("rate", [2**31 - 1, 999_983])
def test_a_rate_that_no_recorder_writes_is_refused_before_its_filter_is_made(tmp_path, transform, rate):
    path = tmp_path / "bad.wav"
    path.write_bytes(wav(encoded(tone(440, 0.01), 1, 16), 1, 1, rate, 16))
    with pytest.raises(DataError, match=rf"^{path} has {rate:,} samples a second"):
        transform.open(path, MediaLayout(1, 1))


def test_a_waveform_without_one_whole_frame_is_refused_and_a_spectrogram_is_padded(tmp_path):
    path = tmp_path / "click.wav"
    for num_samples, frames in ((399, 0), (400, 1)):
        path.write_bytes(wav(encoded(tone(440, 0.1)[:num_samples], 1, 16), 1, 1, RATE, 16))
        assert AudioTransform(clip_seconds=1).open(path, MediaLayout(1, 1)).units.shape == (1, 80, 100)
        if frames:
            assert WaveformTransform().open(path, MediaLayout(1, 1)).layout.num_samples == 400
        else:
            with pytest.raises(DataError, match=rf"^{path} holds 399 samples of 16 kHz, of which 400 make one frame"):
                WaveformTransform().open(path, MediaLayout(1, 1))


def test_what_is_no_audio_file_is_refused(tmp_path):
    (tmp_path / "notes.flac").write_bytes(b"a shopping list, not a recording")
    installed = importlib.util.find_spec("soundfile") is not None
    with pytest.raises(DataError, match=r"notes\.flac is no " + ("audio of a known format" if installed else "WAV file; FLAC")):
        open_audio(tmp_path / "notes.flac")
    with pytest.raises(DataError, match="is a folder"):
        open_audio(tmp_path)
    with pytest.raises(DataError, match=r"no audio file .*gone\.wav"):
        open_audio(tmp_path / "gone.wav")
    with pytest.raises(DataError, match="an array needs its rate"):
        open_audio(np.zeros(4, np.float32))
    with pytest.raises(DataError, match="int16"):
        open_audio(Waveform(np.zeros(4, np.int16), RATE))


def test_flac_is_read_where_soundfile_is_installed():
    soundfile = pytest.importorskip("soundfile")
    file = io.BytesIO()
    soundfile.write(file, np.stack((tone(440, 0.1),) * 2, 1), RATE, format="FLAC")
    np.testing.assert_allclose(open_audio(file.getvalue(), seconds=0.05).samples, tone(440, 0.05), atol=2**-15)


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "MP3"])
def test_other_formats_are_read_whole_and_refused_where_they_are_cut_off(tmp_path, kind):
    soundfile = pytest.importorskip("soundfile")
    noise = np.random.default_rng(0).normal(0, 0.1, 2 * RATE).astype(np.float32)  # it does not compress
    path = tmp_path / "sound"
    soundfile.write(path, noise, RATE, format=kind)
    assert open_audio(path).samples.shape == open_audio(path, seconds=60).samples.shape == (2 * RATE,)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"^{path} (is cut off|is no audio of a known format|holds no samples)"):
        open_audio(path)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 44_056])
def test_a_tone_at_another_rate_is_the_same_tone(rate):
    found = resample(tone(1000, 0.5, rate), rate, RATE)
    assert len(found) == -(-round(0.5 * rate) * RATE // rate)
    inside = slice(400, -400)  # the filter sees silence beyond the ends
    np.testing.assert_allclose(found[inside], tone(1000, 0.5)[: len(found)][inside], atol=2e-4)


def test_what_the_lower_rate_cannot_hold_is_gone():
    found = resample(tone(9_000, 0.5, 48_000), 48_000, RATE)  # would come back as 7 kHz
    assert np.abs(found[400:-400]).max() < 1e-4
    np.testing.assert_allclose(resample(np.ones(4800, np.float32), 48_000, RATE)[400:-400], 1, atol=1e-6)


@pytest.mark.parametrize("num_mels", [80, 128])
def test_log_mel_equals_the_reference(num_mels):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.WhisperFeatureExtractor(feature_size=num_mels)
    for samples in (speech_like(3.0), speech_like(31.0, seed=1), tone(440) * 1e-3):
        ours = AudioTransform(num_mels=num_mels).open(Waveform(samples, RATE), MediaLayout(1, 1500)).units
        expected = theirs(samples, sampling_rate=RATE, return_tensors="np")["input_features"]
        assert ours.shape == expected.shape == (1, num_mels, 3000)
        assert np.abs(ours - expected).max() < 1e-4  # both in float32, on a range of 2


def test_log_mel_by_the_formula():
    """One frame in float64, bin by bin, with the mel scale written out."""
    samples = speech_like(0.5)
    window = np.array([0.5 - 0.5 * np.cos(2 * np.pi * n / 400) for n in range(400)])
    frame = samples[10 * 160 - 200 : 10 * 160 + 200] * window
    power = np.abs([np.sum(frame * np.exp(-2j * np.pi * k * np.arange(400) / 400)) for k in range(201)]) ** 2
    mel = lambda f: f * 3 / 200 if f < 1000 else 15 + 27 * np.log(f / 1000) / np.log(6.4)  # noqa: E731
    hertz = lambda m: m * 200 / 3 if m < 15 else 1000 * 6.4 ** ((m - 15) / 27)  # noqa: E731
    corners = [hertz(mel(8000) * i / 81) for i in range(82)]
    level = []
    for low, middle, high in zip(corners, corners[1:], corners[2:], strict=False):
        heights = [max(0, min((40 * k - low) / (middle - low), (high - 40 * k) / (high - middle))) for k in range(201)]
        level.append(np.log10(max(1e-10, np.dot(heights, power) * 2 / (high - low))))
    found = log_mel(torch.from_numpy(samples))[:, 10] * 4 - 4
    floor = float(found.min())  # of the whole recording
    np.testing.assert_allclose(found, np.maximum(level, floor), atol=1e-3)


def test_silence_is_minus_one_and_a_half_and_the_range_is_two():
    assert (log_mel(torch.zeros(RATE)) == -1.5).all()
    loud = log_mel(torch.from_numpy(speech_like(2.0)))
    assert 1.9 < loud.max() - loud.min() <= 2.0


def test_a_long_recording_is_clipped_and_a_short_one_padded_with_silence():
    transform, layout = AudioTransform(clip_seconds=1.0), MediaLayout(1, 50)
    samples = speech_like(2.0)
    long = transform.open(Waveform(samples, RATE), layout).units
    assert np.array_equal(long, transform.open(Waveform(samples[:RATE], RATE), layout).units)
    short = transform.open(Waveform(samples[:4000], RATE), layout).units
    padded = transform.open(Waveform(np.pad(samples[:4000], (0, 12_000)), RATE), layout).units
    assert np.array_equal(short, padded) and short.shape == (1, *transform.unit_shape) == (1, 80, 100)
    uneven = AudioTransform(clip_seconds=0.327)
    assert uneven.open(Waveform(samples, RATE), layout).units.shape == (1, *uneven.unit_shape) == (1, 80, 32)
    with pytest.raises(ConfigError, match="too short"):
        AudioTransform(clip_seconds=0.02)


def test_waveforms_of_a_batch_are_padded_and_their_layouts_say_how_far_they_go():
    transform, whole = WaveformTransform(clip_seconds=0.5), MediaLayout(1, 24)
    samples = speech_like(1.0)
    media = [transform.open(Waveform(samples[:count], RATE), whole) for count in (3000, RATE)]
    assert [m.layout for m in media] == [MediaLayout(1, 24, num_samples=n) for n in (3000, 8000)]
    units = transform.normalise([m.units[0] for m in media])
    assert units.shape == (2, *transform.unit_shape) == (2, 8000)
    assert torch.equal(units[0, :3000], torch.from_numpy(samples[:3000])) and (units[0, 3000:] == 0).all()


def test_standardised_samples_equal_the_reference():
    transformers = pytest.importorskip("transformers")
    samples = speech_like(0.5) + 0.3
    theirs = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)(samples, sampling_rate=RATE, return_tensors="np")
    ours = WaveformTransform(clip_seconds=1, standardise=True).open(Waveform(samples, RATE), MediaLayout(1, 49)).units
    np.testing.assert_allclose(ours, theirs["input_values"], atol=1e-5)


def test_a_48_kilohertz_stereo_file_goes_through_the_processor_to_a_language_model(tmp_path):
    left, right = tone(1000, 0.5, 48_000), tone(1000, 0.5, 48_000) / 2
    (tmp_path / "a.wav").write_bytes(wav(encoded(np.stack((left, right), 1).ravel(), 1, 16), 1, 2, 48_000, 16))
    transform = AudioTransform(num_mels=8, clip_seconds=0.32)
    system = MultimodalLM.Config(
        language_model=replace(Decoder.Config.tiny(), vocabulary=VOCABULARY),
        streams={"audio": Stream.Config(encoder=Whisper.Config.tiny(), projector=Linear.Config())},
        fusions=(TokenConcatenation.Config(streams=("audio",)),),
    )
    settings = config.loads(config.dumps(Processor.Config(template="compact", transforms={"audio": transform})))
    processor = settings.build(tokenizer(), system)
    asked = Conversation((user(Media(tmp_path / "a.wav", "audio"), "Which?"), assistant("red")), id="7")
    sample = processor.encode(asked)
    assert sample.media["audio"][0].layout == Whisper.Config.tiny().layout() == MediaLayout(1, 16)
    assert sample.modality.sum() == 16
    batch = collate([sample, processor.encode(asked)])
    media = batch.media["audio"]
    assert media.units.shape == (1, 8, 32), "one file, heard once"
    expected = transform.open(Waveform(tone(1000, 0.5) * 0.75, RATE), MediaLayout(1, 16)).units
    inside = slice(4, None)  # before it the filter sees silence
    assert np.abs(media.units.numpy() - expected)[0, :, inside].max() < 0.1  # rounding to 16 bits shows in quiet bands
    torch.manual_seed(0)
    logits = system.build()(batch).logits()
    assert logits.shape == (2, len(sample), VOCABULARY) and logits.isfinite().all()
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(DataError, match=r"sample 7, audio 1: .*a\.wav is an empty file"):
        processor.encode(asked)
