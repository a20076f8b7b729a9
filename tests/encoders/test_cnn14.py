"""CNN14 against a reference written from its description alone: functional, on the published file's names, with plain loops."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from weft.checkpoints.clap_microsoft import CNN14, HEAD
from weft.checkpoints.key_map import KeyMap
from weft.core.errors import ConfigError, DataError
from weft.data.audio import Waveform
from weft.data.clap_audio import ClapAudioTransform
from weft.encoders.cnn14 import Cnn14

TINY = Cnn14.Config.tiny()
UNITS = torch.randn(3, 8, 22, generator=torch.Generator().manual_seed(5)) * 20 - 40  # decibels


def random_encoder(config: Cnn14.Config = TINY) -> Cnn14:
    """Weights, norms and statistics that all matter."""
    encoder, generator = config.build().eval(), torch.Generator().manual_seed(6)
    for name, value in encoder.state_dict().items():
        if value.dim() > 1:
            value.normal_(std=(2 / value[0].numel()) ** 0.5, generator=generator)
        elif name.endswith("running_mean") and "input_norm" in name:
            value.normal_(-40, 5, generator=generator)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2, generator=generator).mul_(400 if "input_norm" in name else 1)
        elif value.dim():
            value.normal_(0, 0.3, generator=generator).add_(float(name.endswith("weight")))
    return encoder


def published_names(encoder: Cnn14) -> dict[str, torch.Tensor]:
    whole = KeyMap.join(CNN14.under("base."), HEAD.under("projection.", "head."))
    return whole.from_weft(encoder.state_dict())


def reference(state: dict[str, torch.Tensor], mels: torch.Tensor, num_blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The steps before pooling in time, [T / stride, C], and the embedding, of one spectrogram [num_mels, T]."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        gain = state[f"{name}.weight"] / (state[f"{name}.running_var"] + 1e-5).sqrt()
        return x * gain[:, None, None] + (state[f"{name}.bias"] - state[f"{name}.running_mean"] * gain)[:, None, None]

    bands = norm(mels[:, None], "base.bn0")[:, 0]
    image = bands.T[None]  # one channel, time down, frequency across
    for block in range(1, num_blocks + 1):
        for layer in (1, 2):
            name = f"base.conv_block{block}"
            image = F.conv2d(image[None], state[f"{name}.conv{layer}.weight"], padding=1)[0]
            image = norm(image, f"{name}.bn{layer}").clamp_min(0)
        if block < num_blocks:
            rows, columns = image.shape[1] // 2 * 2, image.shape[2] // 2 * 2
            image = sum(image[:, i:rows:2, j:columns:2] for i in (0, 1) for j in (0, 1)) / 4
    steps = image.sum(2) / image.shape[2]
    pooled = steps.max(1).values + steps.sum(1) / steps.shape[1]
    hidden = (state["base.fc1.weight"] @ pooled + state["base.fc1.bias"]).clamp_min(0)
    first = state["projection.linear1.weight"] @ hidden
    total = first + state["projection.linear2.weight"] @ (first * 0.5 * (1 + torch.erf(first / 2**0.5)))
    centred = total - total.mean()
    scaled = centred / (centred.square().mean() + 1e-5).sqrt()
    return steps.T, scaled * state["projection.layer_norm.weight"] + state["projection.layer_norm.bias"]


def test_features_and_embedding_equal_an_independent_reference():
    encoder = random_encoder()
    state = published_names(encoder)
    with torch.no_grad():
        features = encoder(UNITS, torch.arange(3), (TINY.layout(),) * 3).values
        pooled = encoder.pool(UNITS)
        assert features.std() > 0.1
        for row, mels in enumerate(UNITS):
            steps, embedding = reference(state, mels, len(TINY.widths))
            size = max(1.0, steps.abs().max().item())
            assert (features[row] - steps).abs().max() <= 1e-5 * size  # float32, sums in another order
            assert (pooled[row] - embedding).abs().max() <= 1e-5 * max(1.0, embedding.abs().max().item())


def test_time_and_frequency_are_not_exchanged():
    """A later sound changes later features only: a feature looks at its own frames and the kernels' reach."""
    config = dataclasses.replace(TINY, num_frames=128)
    encoder = random_encoder(config)
    units = torch.randn(1, 8, 128, generator=torch.Generator().manual_seed(1)) * 20 - 40
    later = units.clone()
    later[..., 96:] += 30
    with torch.no_grad():
        before, after = encoder.steps(units), encoder.steps(later)
    changed = (before - after).abs().amax((0, 1)) > 0
    assert before.shape == (1, 32, 32)
    assert not changed[:18].any() and changed[24:].all()


def test_five_seconds_at_44_kilohertz_become_21_features_and_a_vector_of_2048():
    config, front = Cnn14.Config.sizes()["panns"], ClapAudioTransform.sizes()["clap-microsoft"]
    assert front.num_samples == 220_500 and front.unit_shape == config.unit_shape == (64, 690)
    with torch.device("meta"):
        encoder = config.build()
        units = torch.empty(2, *config.unit_shape)
        assert encoder.pool(units).shape == (2, 2048)
        assert encoder(units, torch.arange(2), (config.layout(),) * 2).values.shape == (2, 21, 2048)


def test_a_recording_goes_all_the_way():
    front = ClapAudioTransform(
        num_mels=8, clip_seconds=0.1, sample_rate_hz=16_000, window_samples=256, hop_samples=64, highest_hz=8000.0
    )
    config = dataclasses.replace(TINY, num_frames=front.unit_shape[1])
    samples = torch.randn(700, generator=torch.Generator().manual_seed(0)).numpy() * 0.1
    opened = front.open(Waveform(samples, 16_000), config.layout())
    with torch.no_grad():
        vector = random_encoder(config).pool(front.normalise([opened.units[0]]))
    assert vector.shape == (1, 24) and vector.isfinite().all()


def test_the_published_parameters():
    with torch.device("meta"):
        encoder = Cnn14.Config.sizes()["panns"].build()
        classifier = torch.nn.Linear(2048, 527)
    assert sum(p.numel() for p in (*encoder.parameters(), *classifier.parameters())) == 80_753_615


@pytest.mark.parametrize("frozen", [False, True])
def test_statistics_follow_in_training_unless_they_are_frozen(frozen):
    encoder = random_encoder(dataclasses.replace(TINY, frozen_statistics=frozen)).train()
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    in_training = encoder.pool(UNITS)
    moved = [name for name, value in encoder.named_buffers() if not torch.equal(value, before[name])]
    assert moved == ([] if frozen else list(before))
    same = torch.allclose(in_training, random_encoder().pool(UNITS), atol=1e-5)
    assert same == frozen


def test_in_training_it_loses_what_the_published_rates_say_and_in_use_nothing():
    """0.2 behind every block, 0.5 before and behind the linear layer and in the head, counted where values were not zero."""
    published = Cnn14.Config.sizes()["clap-microsoft"]
    assert (published.dropout, published.pooled_dropout, published.head_dropout) == (0.2, 0.5, 0.5)
    rates = {"dropout": published.dropout, "pooled_dropout": 0.5, "head_dropout": 0.5}
    encoder = random_encoder(dataclasses.replace(TINY, **rates))
    torch.manual_seed(0)
    lost: list[tuple[str, float]] = []
    for name, layer in encoder.named_modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.register_forward_hook(
                lambda _, given, out, name=name: lost.append((name, (out[given[0] != 0] == 0).float().mean().item()))
            )
    units = UNITS.repeat(40, 1, 1)
    with torch.no_grad():
        assert torch.equal(encoder.pool(UNITS), random_encoder().pool(UNITS))
        assert {share for _, share in lost} == {0.0}
        lost.clear()
        encoder.train().pool(units)
    assert [name for name, _ in lost] == ["dropout"] * 3 + ["pooled_dropout"] * 2 + ["head.dropout"]
    for name, share in lost:
        assert share == pytest.approx(0.2 if name == "dropout" else 0.5, abs=0.05), (
            name
        )  # of 1,700 draws at least: 4 deviations


def test_wrong_units_and_sizes_are_refused_with_the_way_out():
    encoder = TINY.build()
    with pytest.raises(DataError, match=r"\(N, 8, 22\); set the processor's ClapAudioTransform to num_mels=8 and a clip of 22"):
        encoder.pool(torch.zeros(1, 22, 8))
    with pytest.raises(ConfigError, match="at least 4 of each, got num_mels=8, num_frames=3"):
        dataclasses.replace(TINY, num_frames=3)
    with pytest.raises(ConfigError, match="at least one block"):
        dataclasses.replace(TINY, widths=())
    with pytest.raises(ConfigError, match=r"pooled_dropout is a probability from 0 to below 1, got 1\.5"):
        dataclasses.replace(TINY, pooled_dropout=1.5)
    with pytest.raises(ConfigError, match=r"a two_layer head has no dropout, got head_dropout=0\.5"):
        dataclasses.replace(TINY, head="two_layer", head_dropout=0.5).build()
