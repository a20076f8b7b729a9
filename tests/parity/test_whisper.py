"""Whisper's encoder against `transformers`, from random weights through the real key map."""

import pytest
import torch
from reference_models import assert_close, randomise, to_transformers, to_weft

from weft.core.errors import CheckpointError, ConfigError, DataError
from weft.core.layout import MediaLayout
from weft.encoders.whisper import Whisper

transformers = pytest.importorskip("transformers")
from transformers.models.whisper.modeling_whisper import WhisperEncoder  # noqa: E402

SIZE = {
    "d_model": 32, "num_mel_bins": 12, "max_source_positions": 20, "encoder_layers": 3, "encoder_attention_heads": 4,
    "encoder_ffn_dim": 80, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "vocab_size": 24,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "max_target_positions": 8,
}  # fmt: skip
MELS = torch.randn(3, 12, 40, generator=torch.Generator().manual_seed(7))


def forward(encoder: Whisper) -> torch.Tensor:
    return encoder(MELS, torch.arange(3), (encoder.config.layout(),) * 3).values


def test_the_encoder_alone_equals_the_reference(tmp_path):
    theirs = randomise(WhisperEncoder(transformers.WhisperConfig(**SIZE)))
    ours = to_weft(theirs, tmp_path)
    with torch.no_grad():
        assert_close(forward(ours), theirs(MELS).last_hidden_state)
    again = to_transformers(ours, WhisperEncoder, tmp_path / "ours")
    expected = theirs.state_dict()
    assert expected.keys() == again.state_dict().keys()
    assert all(torch.equal(value, expected[key]) for key, value in again.state_dict().items())


@pytest.mark.parametrize("part", ["WhisperModel", "WhisperForConditionalGeneration"])
def test_the_encoder_is_read_from_the_file_of_a_whole_whisper(tmp_path, part):
    whole = randomise(getattr(transformers, part)(transformers.WhisperConfig(**SIZE)))
    ours = to_weft(whole, tmp_path)
    with torch.no_grad():
        assert_close(forward(ours), whole.get_encoder()(MELS).last_hidden_state)


def test_the_decoder_is_dropped_for_a_reason_and_nothing_else_is():
    from weft.checkpoints.whisper import WHISPER

    whole = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**SIZE))
    state = whole.state_dict()  # with the tied head, which files leave out
    encoder = WHISPER.read_config(whole.config.to_dict()).build()
    dropped = WHISPER.key_map(encoder.config).load(encoder, state)
    assert set(dropped) == {key for key in state if not key.startswith("model.encoder.")}
    assert all("encoder is loaded" in reason for reason in dropped.values())
    with pytest.raises(CheckpointError, match=r"1 unknown \(model\.encoder\.conv3\.weight\)"):
        WHISPER.key_map(encoder.config).load(encoder, state | {"model.encoder.conv3.weight": torch.ones(1)})


def test_positions_are_the_published_constant_and_do_not_train():
    ours = Whisper.Config.sizes()["tiny"].build()
    reference = WhisperEncoder(transformers.WhisperConfig(encoder_layers=1)).embed_positions.weight
    assert (ours.position_embedding - reference).abs().max() < 1e-6
    assert "position_embedding" not in dict(ours.named_parameters())
    t, k, width = 700, 50, 384  # one pair by the formula
    angle = torch.tensor(t * 10_000 ** (-k / (width / 2 - 1)), dtype=torch.float64)
    found = ours.position_embedding[t, [k, width // 2 + k]].double()
    assert (found - torch.stack((angle.sin(), angle.cos()))).abs().max() < 1e-4  # float32 angles of up to 1500


@pytest.mark.parametrize(
    ("size", "with_positions"),
    [
        ("tiny", 8_208_384),
        ("base", 20_590_592),
        ("small", 88_154_112),
        ("medium", 307_216_384),
        ("large", 636_784_640),
        ("large-v2", 636_784_640),
        ("large-v3", 636_968_960),
    ],
)
def test_published_sizes_have_the_published_parameters(size, with_positions):
    config = Whisper.Config.sizes()[size]
    with torch.device("meta"):
        encoder = config.build()
        features = encoder(torch.empty(1, *config.unit_shape), torch.zeros(1), (config.layout(),))
    assert sum(p.numel() for p in encoder.parameters()) + config.num_constants == with_positions
    assert features.values.shape == (1, 1500, config.width)  # 30 s at 50 Hz
    assert config.unit_shape == (128 if size == "large-v3" else 80, 3000)


def test_a_hub_config_gives_the_published_size():
    from weft.checkpoints.whisper import WHISPER

    saved = {
        "model_type": "whisper", "d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
        "num_mel_bins": 128, "max_source_positions": 1500, "activation_function": "gelu", "decoder_layers": 32,
    }  # fmt: skip
    assert WHISPER.read_config(saved) == Whisper.Config.sizes()["large-v3"]


def test_units_of_another_shape_are_refused_with_the_way_out():
    encoder = Whisper.Config.tiny().build()
    with pytest.raises(DataError, match=r"\(N, 8, 32\); set the processor's AudioTransform to num_mels=8"):
        encoder(torch.zeros(1, 8, 30), torch.zeros(1), (MediaLayout(1, 16),))
    with pytest.raises(ConfigError, match="even"):
        Whisper.Config(width=33)
