"""HuBERT's pre-training: its targets, its masks, its loss, and a run on tones in which the loss falls."""

import dataclasses
import math
import wave

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_training import losses, tokenizer

from weft.core.batch import IGNORE, MediaBatch, MultimodalBatch, SampleRef, TextSide
from weft.core.errors import ConfigError, DataError
from weft.core.layout import MediaLayout
from weft.data.acoustic_targets import Clusters, read_targets, write_targets
from weft.data.audio import WaveformTransform, open_audio
from weft.data.collate import collate
from weft.data.datasets.recordings import Recordings
from weft.data.mfcc import mfcc, mfcc_frames, with_deltas
from weft.data.processor import Processor
from weft.encoders.clip import ClipVision
from weft.encoders.hubert import Hubert
from weft.layers.waveform_convolutions import num_frames
from weft.objectives.masked_prediction import MaskedPrediction, span_mask
from weft.systems.accounting import SampleShape, cost, on_meta
from weft.systems.media_encoder import MediaEncoder
from weft.training.model_folder import load_weights, read_weights
from weft.training.stage import Optimizer, Recipe, Schedule, Stage
from weft.training.trainer import Trainer

RATE = 16_000
CLASSES = 5
NOISE = torch.randn(RATE // 2, generator=torch.Generator().manual_seed(3)) * 0.1


def kaldi_mfcc_of_one_window(window: list[float]) -> list[float]:
    """The published recipe step by step, in float64, for 400 samples."""
    mean = sum(window) / 400
    centred = [x - mean for x in window]
    sharp = [centred[0] * (1 - 0.97)] + [centred[i] - 0.97 * centred[i - 1] for i in range(1, 400)]
    shaped = [x * (0.5 - 0.5 * math.cos(2 * math.pi * i / 399)) ** 0.85 for i, x in enumerate(sharp)]
    power = np.abs(np.fft.fft(shaped, 512))[:257] ** 2
    mel = [1127 * math.log(1 + k * RATE / 512 / 700) for k in range(257)]
    low, high = 1127 * math.log(1 + 20 / 700), 1127 * math.log(1 + 8000 / 700)
    logs = []
    for band in range(23):
        left, middle, right = (low + (high - low) * (band + j) / 24 for j in range(3))
        energy = 0.0
        for k in range(256):
            if left < mel[k] <= middle:
                energy += power[k] * (mel[k] - left) / (middle - left)
            elif middle < mel[k] < right:
                energy += power[k] * (right - mel[k]) / (right - middle)
        logs.append(math.log(max(energy, 2**-23)))
    out = []
    for c in range(13):
        scale = math.sqrt((1 if c == 0 else 2) / 23)
        value = scale * sum(logs[n] * math.cos(math.pi * c * (n + 0.5) / 23) for n in range(23))
        out.append(value * (1 + 11 * math.sin(math.pi * c / 22)))
    return out


def test_mfcc_by_the_formula():
    found = mfcc(NOISE)
    assert found.shape == (1 + (len(NOISE) - 400) // 160, 13)
    for frame in (0, 7, len(found) - 1):
        expected = kaldi_mfcc_of_one_window(NOISE[frame * 160 : frame * 160 + 400].double().tolist())
        # float32 spectra; coefficients reach 100, and single bands may lie near the noise of the transform
        np.testing.assert_allclose(found[frame], expected, atol=2e-3)


def test_mfcc_equals_the_reference_library():
    """The log-mel values of `transformers` with Kaldi's settings, then scipy's cosine transform and the lifter."""
    audio_utils = pytest.importorskip("transformers.audio_utils")
    fft = pytest.importorskip("scipy.fft")
    filters = audio_utils.mel_filter_bank(
        257, 23, 20, RATE // 2, RATE, norm=None, mel_scale="kaldi", triangularize_in_mel_space=True
    )
    levels = audio_utils.spectrogram(
        NOISE.numpy(), audio_utils.window_function(400, "povey", periodic=False), 400, 160, fft_length=512, power=2.0,
        center=False, preemphasis=0.97, mel_filters=filters, log_mel="log", mel_floor=2**-23, remove_dc_offset=True,
    )  # fmt: skip
    expected = fft.dct(levels.T, norm="ortho")[:, :13] * (1 + 11 * np.sin(np.pi * np.arange(13) / 22))
    np.testing.assert_allclose(mfcc(NOISE), expected, atol=2e-3)  # as above


def test_deltas_are_slopes_over_five_frames_with_repeated_ends():
    features = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    found = with_deltas(features)

    def slope(row: list[torch.Tensor], t: int) -> torch.Tensor:
        at = lambda i: row[min(max(i, 0), len(row) - 1)]  # noqa: E731
        return sum(n * (at(t + n) - at(t - n)) for n in (1, 2)) / 10

    first = [slope(list(features), t) for t in range(9)]
    second = [slope(first, t) for t in range(9)]
    torch.testing.assert_close(found, torch.cat((features, torch.stack(first), torch.stack(second)), 1))
    ramp = torch.arange(12.0)[:, None] * 3
    assert (with_deltas(ramp)[4:-4] == torch.cat((ramp[4:-4], torch.full((4, 1), 3.0), torch.zeros(4, 1)), 1)).all()


@pytest.mark.parametrize("samples", [400, 559, 560, 719, 720, 5000, 8000])
def test_there_is_one_target_for_every_frame_of_the_encoder(samples):
    assert mfcc_frames(NOISE[:samples]).shape == (num_frames(samples), 39)


def test_clusters_find_the_groups_and_label_by_the_nearest(tmp_path):
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    group = torch.randint(3, (300,), generator=generator)
    frames = centres[group] + 0.3 * torch.randn(300, 2, generator=generator)
    clusters = Clusters.fit(frames.split(100), 3, num_starts=3)
    distance = torch.cdist(centres, clusters.centroids)
    assert (distance.min(1).values < 0.2).all() and distance.argmin(1).unique().numel() == 3
    labels = clusters.labels(frames)
    assert torch.equal(labels, torch.cdist(frames, clusters.centroids).argmin(1))
    assert torch.equal(distance.argmin(1)[group], labels), "every frame is in its own group"
    clusters.save(tmp_path / "clusters.safetensors")
    assert torch.equal(Clusters.load(tmp_path / "clusters.safetensors").centroids, clusters.centroids)
    with pytest.raises(DataError, match="4 clusters need as many frames, got 3"):
        Clusters.fit([frames[:3]], 4)
    write_targets(tmp_path / "targets.safetensors", {"a": labels})
    assert np.array_equal(read_targets(tmp_path / "targets.safetensors")["a"], labels.numpy())
    with pytest.raises(DataError, match="holds one matrix 'centroids'"):
        Clusters.load(tmp_path / "targets.safetensors")
    with pytest.raises(DataError, match="not labels"):
        read_targets(tmp_path / "clusters.safetensors")


def test_masks_are_spans_of_the_published_number():
    generator = torch.Generator().manual_seed(0)
    masks = torch.stack([span_mask(500, 0.8, 10, 2, generator) for _ in range(200)])
    # 40 spans of 10 at random places leave (1 - 40 / 491) ** 10 of the frames in the middle
    assert abs(masks[:, 10:-10].float().mean() - (1 - (1 - 40 / 491) ** 10)) < 0.01
    runs = torch.nn.functional.pad(masks.int(), (1, 1)).diff(dim=1)
    lengths = (runs == -1).nonzero()[:, 1] - (runs == 1).nonzero()[:, 1]
    assert lengths.min() == 10
    few = [int(span_mask(30, 0.1, 10, 2, generator).sum()) for _ in range(50)]
    assert min(few) > 10 and max(few) <= 20, "two spans at least, never at one place"
    assert span_mask(9, 0.8, 10, 2, generator).tolist() == [False] * 9
    counts = [math.ceil(span_mask(1000, 0.15, 1, 0, generator).sum().item()) for _ in range(20)]
    assert set(counts) == {150}, "spans of one frame: exactly the probability"


def tiny_system(**changes) -> MediaEncoder:
    torch.manual_seed(0)
    config = MediaEncoder.Config(encoder=Hubert.Config.tiny(), num_clusters=CLASSES, embedding_width=8, **changes)
    return config.build()


def batch(lengths=(2000, 1000, 1600), clip: int = 2000) -> MultimodalBatch:
    """Noise of several lengths, with targets for every real frame."""
    generator = torch.Generator().manual_seed(5)
    frames = num_frames(clip)
    units = torch.randn(len(lengths), clip, generator=generator)
    targets = torch.randint(CLASSES, (len(lengths), frames), generator=generator)
    for row, length in enumerate(lengths):
        units[row, length:] = 0
        targets[row, num_frames(length) :] = IGNORE
    none = torch.zeros(len(lengths), 0, dtype=torch.long)
    count = torch.arange(len(lengths))
    layout = tuple(MediaLayout(1, frames, num_samples=n) for n in lengths)
    media = MediaBatch(units, count, layout, torch.zeros(0, 5, dtype=torch.long), count, targets=targets)
    samples = tuple(SampleRef(row, 1, "noise", f"{length}") for row, length in enumerate(lengths))
    return MultimodalBatch(TextSide(none, none, none, none, none), {"audio": media}, samples)


SHORT = {"span": 2, "least_spans": 1}


@pytest.mark.parametrize("weights", [(1.0, 0.0), (1.0, 0.25)], ids=["masked only", "both"])
def test_loss_by_the_published_form(weights):
    """The codeword of the target beside all codewords, its double struck out, frame by frame in plain numbers."""
    system, data = tiny_system().eval(), batch()
    objective = MaskedPrediction.Config(masked_weight=weights[0], unmasked_weight=weights[1], **SHORT).build()
    with torch.no_grad():
        terms = objective(system, data)
        masked = objective.masked(data)
        media = data.media["audio"]
        states = system.encoder.states(media.units, torch.tensor([2000, 1000, 1600]), masked)
        projected = system.head.projection(states.hidden).double()
    words = system.head.codewords.double().tolist()
    total, count, squares, real = 0.0, 0, 0.0, 0
    for n in range(3):
        for t in range(projected.shape[1]):
            target = int(media.targets[n, t])
            if target == IGNORE:
                continue
            real += 1
            squares += float(states.convolved[n, t].double().square().mean())
            weight = weights[0] if masked[n, t] else weights[1]
            if weight:
                vector = projected[n, t].tolist()
                cosine = [
                    sum(a * b for a, b in zip(vector, word, strict=True)) / math.hypot(*vector) / math.hypot(*word)
                    for word in words
                ]
                row = [cosine[target]] + [-math.inf if c == target else cosine[c] for c in range(CLASSES)]
                total += weight * (math.log(sum(math.exp(value / 0.1) for value in row)) - row[0] / 0.1)
                count += 1
    assert 0 < int(masked.sum()) < real
    assert terms.weights == {"prediction": torch.tensor(float(count)), "feature_penalty": torch.tensor(float(real))}
    assert math.isclose(terms.sums["prediction"], total, rel_tol=1e-4)  # float32 against float64
    assert math.isclose(terms.sums["feature_penalty"], 10 * squares, rel_tol=1e-4)


def test_only_masked_frames_count():
    system, data = tiny_system().eval(), batch()
    objective = MaskedPrediction.Config(**SHORT).build()
    masked, media = objective.masked(data), data.media["audio"]
    real = media.targets != IGNORE

    def loss(changed: torch.Tensor) -> float:
        other = torch.where(changed & real, (media.targets + 1) % CLASSES, media.targets)
        new = dataclasses.replace(data, media={"audio": dataclasses.replace(media, targets=other)})
        with torch.no_grad():
            return float(objective(system, new).sums["prediction"])

    nothing = torch.zeros_like(masked)
    assert loss(~masked) == loss(nothing) != loss(masked)


def test_weights_are_known_before_the_forward_and_micro_batches_add_up():
    """In training mode, where masks change from step to step, and split at any place."""
    system, whole = tiny_system(), batch()
    objective = MaskedPrediction.Config(**SHORT).build().train()
    seen = []
    for _ in range(3):
        known = objective.weights(whole)
        terms = objective(system, whole)
        assert known == terms.weights
        parts = [objective(system, batch((length,))) for length in (2000, 1000, 1600)]
        assert sum(float(part.weights["prediction"]) for part in parts) == float(known["prediction"])
        seen.append(objective.masked(whole))
        objective.after_step(system)
    assert not torch.equal(seen[0], seen[1]), "a new mask at every step"
    again = MaskedPrediction.Config(**SHORT).build()
    again.load_state_dict(objective.state_dict())
    assert torch.equal(again.masked(whole), objective.masked(whole)), "a resumed run goes on with the same masks"
    objective.eval()
    first = objective.masked(whole)
    objective.after_step(system)
    assert torch.equal(objective.masked(whole), first), "validation always hides the same frames"


def test_the_gradient_into_the_convolutions_is_scaled_and_no_other():
    gradients = []
    for scale in (1.0, 0.1):
        system = tiny_system(convolution_gradient=scale)
        MaskedPrediction.Config(**SHORT).build()(system, batch()).mean().backward()
        gradients.append({name: p.grad for name, p in system.named_parameters()})
    assert all(gradient is not None for gradient in gradients[0].values()), "every parameter learns"
    for name, gradient in gradients[0].items():
        factor = 0.1 if ".convolutions." in name else 1.0
        torch.testing.assert_close(gradients[1][name], factor * gradient, rtol=1e-4, atol=1e-7)


def test_what_cannot_be_pre_trained_says_so():
    with pytest.raises(ConfigError, match="ClipVision cannot hide features from itself"):
        MediaEncoder.Config(encoder=ClipVision.Config.tiny(), num_clusters=4).build()
    data = batch()
    media = dataclasses.replace(data.media["audio"], targets=None)
    with pytest.raises(DataError, match="needs the cluster of every frame"):
        MaskedPrediction.Config().build().weights(dataclasses.replace(data, media={"audio": media}))


def test_the_system_is_counted_before_it_exists():
    system = on_meta(tiny_system().config)
    found = cost(system, SampleShape(0, {"audio": (1, 2000)}), dtype=torch.float32)
    assert 0 < found.forward_flops < found.backward_flops
    head = 2 * num_frames(2000) * 8 * (32 + CLASSES)  # the projection and the comparison with the codewords
    bare = cost(on_meta(dataclasses.replace(system.config, num_clusters=1)), SampleShape(0, {"audio": (1, 2000)}))
    assert found.forward_flops - bare.forward_flops == head * (CLASSES - 1) // (32 + CLASSES)


PITCHES = (300, 700, 1500, 3100, 6000)
SECONDS = 0.5


def write_melodies(folder, count: int) -> None:
    """Melodies in which each pitch is followed by the next one up: what is hidden can be told from what stands around it."""
    random = np.random.default_rng(0)
    for number in range(count):
        pitch, samples = int(random.integers(CLASSES)), []
        while len(samples) < SECONDS * RATE:
            length = int(random.integers(1600, 2400))
            tone = 0.3 * np.sin(2 * np.pi * PITCHES[pitch] * np.arange(length) / RATE)
            samples.extend(tone + random.normal(0, 0.01, length))
            pitch = (pitch + 1) % CLASSES
        with wave.open(str(folder / f"{number:02}.wav"), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes((np.array(samples[: int(SECONDS * RATE)]) * 32767).astype("<i2").tobytes())


def melody_recipe(folder, targets, num_clusters: int, steps: int) -> Recipe:
    encoder = dataclasses.replace(Hubert.Config.tiny(), clip_samples=int(SECONDS * RATE), convolution_width=32)
    system = MediaEncoder.Config(encoder=encoder, num_clusters=num_clusters, embedding_width=16)
    stage = Stage(
        name="pretrain",
        system=system,
        train=("*",),
        processor=Processor.Config(transforms={"audio": WaveformTransform(clip_seconds=SECONDS)}),
        data=Recordings.Config(folder=str(folder), targets=str(targets)),
        objective=MaskedPrediction.Config(span=4, mask_probability=0.5),
        batch_size=8,
        micro_batch_size=4,
        steps=steps,
        max_tokens=16,
        optimizer=Optimizer(learning_rate=4e-3, weight_decay=0.01),
        schedule=Schedule(warmup=4),
        precision="fp32",
    )
    return Recipe(name="melodies", stages=(stage,))


def test_two_rounds_on_melodies(tmp_path):
    """Clusters of MFCC, a model that learns them, clusters of its features: the trainer's whole way, and the loss falls."""
    folder = tmp_path / "melodies"
    folder.mkdir()
    write_melodies(folder, 16)
    samples = {path.name: torch.from_numpy(open_audio(path).samples) for path in sorted(folder.glob("*.wav"))}

    spectra = {name: mfcc_frames(values) for name, values in samples.items()}
    clusters = Clusters.fit(spectra.values(), 6, num_starts=2)
    labels = {name: clusters.labels(frames) for name, frames in spectra.items()}
    write_targets(tmp_path / "first.safetensors", labels)
    recipe = melody_recipe(folder, tmp_path / "first.safetensors", 6, steps=40)
    Trainer(recipe, tmp_path / "run", tokenizer=tokenizer()).fit()
    curve = [loss for _, _, loss in losses(tmp_path / "run")]
    commonest = torch.cat(list(labels.values())).bincount().double()
    entropy = -(commonest / commonest.sum()).log().mul(commonest / commonest.sum()).sum()
    assert sum(curve[-5:]) / 5 < 0.5 * sum(curve[:5]) / 5
    assert sum(curve[-5:]) / 5 < 0.7 * entropy, "far better than knowing how common each cluster is"

    system = recipe.stages[0].system.build().eval()
    load_weights(system, read_weights(tmp_path / "run" / "model" / "model.safetensors"), "model")
    with torch.no_grad():
        features = {name: system.encoder.states(values[None], num_blocks=1).hidden[0] for name, values in samples.items()}
    second = Clusters.fit(features.values(), 8, num_starts=2)
    write_targets(tmp_path / "second.safetensors", {name: second.labels(frames) for name, frames in features.items()})
    data = Recordings.Config(folder=str(folder), targets=str(tmp_path / "second.safetensors")).build()
    assert len(data) == 16 and data[3].id == "03.wav"
    (medium,) = data[3].media()
    assert medium.targets.shape == (num_frames(int(SECONDS * RATE)),) and medium.targets.max() < 8
    assert F.one_hot(torch.from_numpy(medium.targets), 8).any(0).sum() > 2, "the features tell sounds apart"


def test_recordings_without_files_or_targets_are_refused(tmp_path):
    with pytest.raises(DataError, match="no recording"):
        Recordings.Config(folder=str(tmp_path)).build()
    write_melodies(tmp_path, 2)
    assert next(iter(Recordings.Config(folder=str(tmp_path)).build()[0].media())).targets is None
    write_targets(tmp_path / "targets.safetensors", {"00.wav": torch.zeros(3)})
    with pytest.raises(DataError, match=r"no targets for 1 of 2 recordings: 01\.wav"):
        Recordings.Config(folder=str(tmp_path), targets=str(tmp_path / "targets.safetensors")).build()


def test_targets_of_shorter_recordings_are_filled_up_and_nothing_is_said_of_padding(tmp_path):
    write_melodies(tmp_path, 1)
    with wave.open(str(tmp_path / "short.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(bytes(2 * 3000))
    labels = {"00.wav": torch.arange(24), "short.wav": torch.arange(num_frames(3000))}
    write_targets(tmp_path / "targets.safetensors", labels)
    stage = melody_recipe(tmp_path, tmp_path / "targets.safetensors", 24, steps=1).stages[0]
    processor, data = stage.processor.build(tokenizer(), stage.system), stage.data.build()
    made = collate([processor.encode(data[index]) for index in range(2)])
    media = made.media["audio"]
    assert made.num_tokens == 0 and media.units.shape == (2, 8000)
    assert [entry.num_samples for entry in media.layout] == [8000, 3000]
    assert media.targets.tolist() == [list(range(24)), [*range(num_frames(3000)), *[IGNORE] * (24 - num_frames(3000))]]
    masked = stage.objective.build().masked(made)
    assert not masked[1, num_frames(3000) :].any() and masked[0].any()


def test_more_targets_than_features_are_refused(tmp_path):
    write_melodies(tmp_path, 1)
    write_targets(tmp_path / "targets.safetensors", {"00.wav": torch.zeros(30)})
    stage = melody_recipe(tmp_path, tmp_path / "targets.safetensors", 4, steps=1).stages[0]
    with pytest.raises(DataError, match=r"sample .*00\.wav, audio 1: 30 targets for 24 features"):
        stage.processor.build(tokenizer(), stage.system).encode(stage.data.build()[0])
