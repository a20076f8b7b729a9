"""HuBERT against `transformers`, from random weights through the real key map, with both norms and both spellings."""

import dataclasses

import pytest
import torch
from reference_models import assert_close, randomise, to_transformers, to_weft

from weft.core.errors import CheckpointError, ConfigError, DataError
from weft.core.layout import MediaLayout
from weft.encoders.hubert import Hubert
from weft.layers.waveform_convolutions import num_frames

transformers = pytest.importorskip("transformers")

SIZE = {
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 80, "conv_dim": (24,) * 7,
    "num_conv_pos_embeddings": 10, "num_conv_pos_embedding_groups": 3,
}  # fmt: skip
LARGE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
VARIANTS = {
    "base": {},
    "large": LARGE,
    "large, convolutions without bias": LARGE | {"conv_bias": False},
    "odd position kernel": {"num_conv_pos_embeddings": 7},
}
SAMPLES = torch.randn(3, 4000, generator=torch.Generator().manual_seed(7))
LENGTHS = (4000, 2345, 1000)
each_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


def reference(variant, part="HubertModel"):
    return randomise(getattr(transformers, part)(transformers.HubertConfig(**SIZE | variant)))


def forward(encoder: Hubert, samples: torch.Tensor, lengths=None):
    frames = num_frames(samples.shape[1])
    layout = tuple(MediaLayout(1, frames, num_samples=n) for n in (lengths or [None] * len(samples)))
    return encoder(samples, torch.arange(len(samples)), layout)


@each_variant
def test_features_and_every_hidden_state_equal_the_reference(tmp_path, variant):
    theirs = reference(variant)
    ours = to_weft(theirs, tmp_path)
    with torch.no_grad():
        expected = theirs(SAMPLES, output_hidden_states=True)
        assert_close(forward(ours, SAMPLES).values, expected.last_hidden_state)
        for layer in (0, 1, 2):
            ours.config = dataclasses.replace(ours.config, feature_layer=layer)
            assert_close(forward(ours, SAMPLES).values, expected.hidden_states[layer])


@each_variant
def test_a_padded_waveform_has_the_features_that_the_reference_gives_it_alone(tmp_path, variant):
    theirs = reference(variant)
    ours = to_weft(theirs, tmp_path)
    padded = SAMPLES.clone()
    for row, length in zip(padded, LENGTHS, strict=True):
        row[length:] = 9.0  # must not matter
    with torch.no_grad():
        found = forward(ours, padded, LENGTHS)
        for row, length in enumerate(LENGTHS):
            real = num_frames(length)
            assert found.valid[row].tolist() == [True] * real + [False] * (num_frames(4000) - real)
            assert_close(found.values[row : row + 1, :real], theirs(SAMPLES[row : row + 1, :length]).last_hidden_state)
            assert (found.values[row, real:] == 0).all()


def test_with_a_mask_the_large_reference_agrees_and_the_base_one_lets_padding_into_its_norm(tmp_path):
    real = torch.arange(4000) < torch.tensor(LENGTHS)[:, None]
    for name, agrees in (("base", False), ("large", True)):
        theirs = reference(VARIANTS[name])
        ours = to_weft(theirs, tmp_path / name)
        with torch.no_grad():
            expected = theirs(SAMPLES * real, attention_mask=real.long()).last_hidden_state
            found = forward(ours, SAMPLES * real, LENGTHS)
        difference = ((found.values - expected) * found.valid[..., None]).abs().max() / expected.abs().max()
        assert (difference < 1e-5) if agrees else (difference > 1e-2)


@each_variant
def test_what_weft_writes_the_reference_loads_without_a_word_about_keys(tmp_path, variant):
    theirs = reference(variant)
    ours = to_weft(theirs, tmp_path / "theirs")
    again = to_transformers(ours, transformers.HubertModel, tmp_path / "ours")
    expected = theirs.state_dict()
    assert expected.keys() == again.state_dict().keys()
    assert all(torch.equal(value, expected[key]) for key, value in again.state_dict().items())
    with torch.no_grad():
        assert_close(forward(ours, SAMPLES).values, again(SAMPLES).last_hidden_state)


def version_4(key: str) -> str:
    stem = "pos_conv_embed.conv."
    return key.replace(f"{stem}parametrizations.weight.original0", f"{stem}weight_g").replace(
        f"{stem}parametrizations.weight.original1", f"{stem}weight_v"
    )


@each_variant
def test_the_old_spelling_of_the_weight_norm_is_read(tmp_path, variant):
    theirs = reference(variant)
    ours = to_weft(theirs, tmp_path, rename=version_4)
    with torch.no_grad():
        assert_close(forward(ours, SAMPLES).values, theirs(SAMPLES).last_hidden_state)


def test_both_spellings_in_one_file_are_refused():
    from weft.checkpoints.hubert import HUBERT

    config = HUBERT.tiny()[0]
    model = config.build()
    state = HUBERT.key_map(config).from_weft(model.state_dict())
    extra = {version_4(key): value for key, value in state.items()}
    with pytest.raises(CheckpointError, match=r"2 conflicting .*weight_g all become the model's"):
        HUBERT.key_map(config).load(model, state | extra)


def test_the_encoder_is_read_from_a_speech_recogniser_and_its_head_dropped(tmp_path):
    theirs = reference({}, "HubertForCTC")
    ours = to_weft(theirs, tmp_path)
    with torch.no_grad():
        assert_close(forward(ours, SAMPLES).values, theirs.hubert(SAMPLES).last_hidden_state)


def test_a_masked_frame_is_the_learned_vector(tmp_path):
    theirs = reference({})
    ours = to_weft(theirs, tmp_path)
    masked = torch.rand(3, num_frames(4000), generator=torch.Generator().manual_seed(0)) < 0.5
    with torch.no_grad():
        expected = theirs.train()  # the reference masks in training mode only, and drops out nothing here
        for module in expected.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        expected.config.layerdrop = 0.0
        for layer in expected.encoder.layers:
            layer.attention.dropout = 0.0
        found = expected(SAMPLES, mask_time_indices=masked).last_hidden_state
        assert_close(ours.states(SAMPLES, masked=masked).hidden, found)


@pytest.mark.parametrize(
    ("samples", "frames"), [(399, 0), (400, 1), (719, 1), (720, 2), (16_000, 49), (32_000, 99), (160_000, 499)]
)
def test_frames_of_a_recording(samples, frames):
    assert num_frames(samples) == frames == num_frames(torch.tensor([samples]))[0]
    if samples >= 400:
        theirs = transformers.HubertModel(transformers.HubertConfig(**SIZE))._get_feat_extract_output_lengths(samples)
        assert int(theirs) == frames


@pytest.mark.parametrize(
    ("size", "changes", "parameters"),
    [
        ("base", {}, 94_371_712),
        ("large", {}, 315_438_720),
        ("large", {"convolution_bias": False}, 315_435_136),
        ("x-large", {}, 962_497_408),
    ],
)
def test_published_sizes_have_the_published_parameters(size, changes, parameters):
    config = dataclasses.replace(Hubert.Config.sizes()[size], **changes)
    with torch.device("meta"):
        encoder = config.build()
        features = encoder(torch.empty(1, 160_000), torch.zeros(1), (config.layout(),)) if size == "base" else None
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    assert features is None or features.values.shape == (1, 499, 768)


def test_hub_configs_give_the_published_sizes():
    from weft.checkpoints.hubert import HUBERT

    assert HUBERT.read_config({"model_type": "hubert"}) == Hubert.Config.sizes()["base"]
    saved = {
        "model_type": "hubert", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "intermediate_size": 4096, "conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_dim": [512] * 7, "hidden_act": "gelu",
        "hidden_dropout": 0.0, "layerdrop": 0.0, **LARGE,
    }  # fmt: skip
    assert HUBERT.read_config(saved) == Hubert.Config.sizes()["large"]
    with pytest.raises(CheckpointError, match=r"conv_stride=\[5, 2, 2, 2, 2, 2, 2\], the config says \[5, 2\]"):
        HUBERT.read_config({"conv_stride": [5, 2]})
    with pytest.raises(CheckpointError, match="conv_pos_batch_norm"):
        HUBERT.read_config({"conv_pos_batch_norm": True})


def test_units_that_are_no_waveforms_are_refused():
    encoder = Hubert.Config.tiny().build()
    with pytest.raises(DataError, match="at least 400"):
        encoder(torch.zeros(1, 300), torch.zeros(1), (MediaLayout(1, 1),))
    with pytest.raises(ConfigError, match="choose numbers that divide"):
        Hubert.Config(num_heads=7)
    with pytest.raises(ConfigError, match="no frame"):
        Hubert.Config(clip_samples=100)
