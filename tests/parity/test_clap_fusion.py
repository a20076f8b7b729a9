"""LAION's CLAP with fusion against `transformers`: long recordings, short ones, and both in one batch."""

import dataclasses

import pytest
import torch
from reference_models import assert_close, to_transformers, to_weft
from test_clap import AUDIO, with_statistics

from weft.checkpoints.clap import CLAP, CLAP_AUDIO
from weft.core.errors import ConfigError, DataError
from weft.data.clap_audio import ClapAudioTransform
from weft.encoders.clap_laion import ClapLaionWrapper
from weft.systems.accounting import SampleShape, cost, num_parameters, on_meta

transformers = pytest.importorskip("transformers")

TINY = dataclasses.replace(ClapLaionWrapper.Config.tiny(), fused=True)
LONG = {"long": [True] * 3, "short": [False] * 3, "both": [True, False, True], "one": [False, False, True]}


def reference() -> "transformers.ClapAudioModelWithProjection":
    config = transformers.ClapAudioConfig(**AUDIO, enable_fusion=True, fusion_type="aff_2d")
    return with_statistics(transformers.ClapAudioModelWithProjection(config))


def units_of(longer: list[bool], shape: tuple[int, ...]) -> torch.Tensor:
    """Four spectrograms and the plane that says which are of a long recording."""
    units = torch.randn(len(longer), *shape, generator=torch.Generator().manual_seed(7))
    units[:, 4] = torch.tensor(longer).float()[:, None, None]
    return units


@pytest.mark.parametrize("frames", [256, 250], ids=["whole", "stretched"])
@pytest.mark.parametrize("case", LONG)
def test_features_and_embeddings_equal_the_reference(tmp_path, case, frames):
    theirs = reference()
    ours = to_weft(theirs, tmp_path)
    ours.config = dataclasses.replace(ours.config, num_frames=frames)
    units = units_of(LONG[case], ours.config.unit_shape)
    views, longer = units[:, :4].mT, torch.tensor(LONG[case])[:, None]
    with torch.no_grad():
        grid = theirs.audio_model(input_features=views, is_longer=longer).last_hidden_state
        layout = (ours.config.layout(),) * 3
        assert_close(ours(units, torch.arange(3), layout).values, grid.flatten(2).mT)
        assert_close(ours.pool(units), theirs(input_features=views, is_longer=longer).audio_embeds)


def test_the_clips_of_a_long_recording_are_heard_and_those_of_a_short_one_are_not():
    torch.manual_seed(0)
    encoder = TINY.build().eval()
    units = units_of([True, False], TINY.unit_shape)
    other = units.clone()
    other[:, 3] += 1
    with torch.no_grad():
        together, changed = encoder.pool(units), encoder.pool(other)
        alone = torch.cat([encoder.pool(unit) for unit in units.split(1)])
    assert not torch.allclose(changed[0], together[0], atol=1e-4) and torch.equal(changed[1], together[1])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)  # float32, other blocking


def test_the_published_size_has_the_published_parameters():
    config = CLAP.read_config({"model_type": "clap", "audio_config": {"enable_fusion": True}})
    trained = ClapLaionWrapper.Config.sizes()["htsat-fused"]
    assert config.media == dataclasses.replace(trained, dropout=0.1, stochastic_depth=0.0), "as the library has it"
    assert config.media.unit_shape == ClapAudioTransform.sizes()["clap-laion-fused"].unit_shape == (5, 64, 1001)
    with torch.device("meta"):
        system = config.build()
        assert system.media.pool(torch.empty(1, *config.media.unit_shape)).shape == (1, 512)
    assert num_parameters(system) == 153_507_530
    assert num_parameters(system.media) == config.media.num_parameters


def test_what_it_costs_beside_the_tower_without_fusion_is_counted_as_of_a_long_recording():
    plain, fused = (cost(on_meta(config), SampleShape(4, {"audio": (1, *config.media.unit_shape)})) for config in CLAP.tiny())
    width, narrow, side = 16, 4, 8  # of features, inside the attention, and of the square in patches
    clips = 3 * (side * 2) * width * (4 * 12)  # of each of three clips 8 by 2 patches of 4 by 12 pixels
    attention = (side * side + 1) * 2 * width * narrow  # over what is near, and over all
    assert fused.forward_flops - plain.forward_flops == 2 * (clips + attention)


def test_what_weft_writes_the_reference_loads(tmp_path):
    theirs = reference()
    ours = to_weft(theirs, tmp_path / "theirs")
    again = to_transformers(ours, transformers.ClapAudioModelWithProjection, tmp_path / "ours")
    assert again.config.enable_fusion and again.config.fusion_type == "aff_2d"
    expected = theirs.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in again.state_dict().items())


def test_a_fusion_without_a_type_and_a_files_own_rates_are_read():
    saved = {"model_type": "clap_audio_model", "enable_fusion": True, "hidden_dropout_prob": 0.2, "drop_path_rate": 0.3}
    config = CLAP_AUDIO.read_config(saved)
    assert config.fused and (config.dropout, config.stochastic_depth) == (0.2, 0.3)
    assert CLAP_AUDIO.read_config(CLAP_AUDIO.write_config(config)) == config


@pytest.mark.parametrize("longer", [[True], [False], [False] * 3, [True, False, True]], ids=str)
def test_every_step_trains_the_fusion_whatever_a_batch_holds(longer):
    """Also a recording alone, whose one value over all of it the library's own batch norm refuses."""
    torch.manual_seed(0)
    encoder = TINY.build().train()
    encoder.pool(units_of(longer, TINY.unit_shape)).square().sum().backward()
    fusion = {name: p.grad for name, p in encoder.named_parameters() if "fusion_model" in name or "mel_conv2d" in name}
    assert len(fusion) == 18 and all(gradient is not None and gradient.isfinite().all() for gradient in fusion.values())
    assert fusion["tower.patch_embed.mel_conv2d.weight"].any()
    assert all(value.isfinite().all() for value in encoder.state_dict().values())


def test_which_short_recording_trains_the_fusion_is_drawn():
    torch.manual_seed(0)
    encoder = TINY.build().train()
    told = {case: units_of(longer, TINY.unit_shape)[:, 4:] for case, longer in LONG.items()}
    drawn = [encoder.longer(told["short"]).tolist() for _ in range(30)]
    assert all(sum(each) == 1 for each in drawn) and {each.index(True) for each in drawn} == {0, 1, 2}
    assert encoder.longer(told["one"]).tolist() == LONG["one"]
    encoder.eval()
    assert {case: encoder.longer(plane).tolist() for case, plane in told.items()} == LONG


def test_in_training_both_halves_of_a_block_are_lost_at_a_rate_that_rises():
    """A block of which both halves are lost leaves what comes in as it is."""
    assert {(each.dropout, each.stochastic_depth) for each in ClapLaionWrapper.Config.sizes().values()} == {(0.0, 0.1)}
    torch.manual_seed(0)
    config = dataclasses.replace(ClapLaionWrapper.Config.tiny(), stochastic_depth=0.6)
    blocks = [block for stage in config.build().train().tower.layers for block in stage.blocks]
    for block, side, rate in zip(blocks, [8, 8, 4, 4], [0.0, 0.2, 0.4, 0.6], strict=True):
        entering = torch.randn(400, side * side, block.layernorm_before.normalized_shape[0])
        with torch.no_grad():
            (leaving,) = block(entering, (side, side))
        untouched = (leaving == entering).flatten(1).all(1).float().mean().item()
        assert untouched == pytest.approx(rate**2, abs=0.1)  # of 400 draws: four deviations


def test_units_of_one_spectrogram_and_squares_without_room_are_refused():
    with pytest.raises(DataError, match=r"\(N, 5, 16, 60\); set .* a clip of 60 frames, fused=True"):
        TINY.build().pool(torch.zeros(1, 16, 60))
    with pytest.raises(ConfigError, match="choose a larger spec_size"):
        dataclasses.replace(TINY, num_mels=8, num_frames=8, spec_size=8, depths=(2,), num_heads=(2,))
