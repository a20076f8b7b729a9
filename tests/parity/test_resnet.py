"""ResNet against `transformers`, from random weights through the real key map; what held statistics promise."""

import dataclasses

import pytest
import torch
from reference_models import assert_close, randomise, to_transformers, to_weft
from torch import nn

from weft.checkpoints.checkpoint_format import checkpoint_formats
from weft.core.errors import CheckpointError, ConfigError, DataError
from weft.core.layout import MediaLayout
from weft.encoders.resnet import Resnet
from weft.training.freezing import freeze, set_training_mode

transformers = pytest.importorskip("transformers")

SHAPE = {"embedding_size": 8, "hidden_sizes": [16, 24, 32], "depths": [1, 3, 2]}
each_placement = pytest.mark.parametrize("first", [False, True], ids=["stride on 3x3", "stride on 1x1"])


def random_statistics(model: nn.Module) -> nn.Module:
    """Running means and variances as a trained network has them: away from zero and one."""
    generator = torch.Generator().manual_seed(5)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(generator=generator).mul_(0.3)
            layer.running_var.uniform_(0.5, 2.0, generator=generator)
            layer.num_batches_tracked.fill_(7)
    return model


def reference(first: bool = False, cls=transformers.ResNetModel, **more):
    config = transformers.ResNetConfig(**SHAPE, downsample_in_bottleneck=first, **more)
    return random_statistics(randomise(cls(config)))


def pictures(height: int, width: int | None = None) -> torch.Tensor:
    return torch.randn(3, 3, height, width or height, generator=torch.Generator().manual_seed(7))


def changed(encoder: Resnet, **changes) -> Resnet:
    """The same weights under another config."""
    other = dataclasses.replace(encoder.config, **changes).build().eval()
    other.load_state_dict(encoder.state_dict())
    return other


def features(encoder: Resnet, units: torch.Tensor) -> torch.Tensor:
    return encoder(units, torch.arange(len(units)), (encoder.config.layout(),) * len(units)).values


def cells(feature_map: torch.Tensor) -> torch.Tensor:
    """A map's cells row by row, [N, H * W, C]."""
    return torch.stack([feature_map[:, :, y, x] for y in range(feature_map.shape[2]) for x in range(feature_map.shape[3])], 1)


@each_placement
@pytest.mark.parametrize("size", [(64, 64), (50, 71)], ids=["even", "with rests"])
def test_every_map_and_the_pooled_vector_equal_the_reference(tmp_path, first, size):
    theirs = reference(first)
    loaded = to_weft(theirs, tmp_path)
    units = pictures(*size)
    with torch.no_grad():
        expected = theirs(units, output_hidden_states=True)
        for layer in (-1, -2, 1, 0):
            ours = changed(loaded, image_size=size[0], image_width=size[1], feature_layer=layer)
            wanted = expected.hidden_states[layer]
            assert ours.config.layout() == MediaLayout(*wanted.shape[2:])
            assert ours.config.output_width == wanted.shape[1]
            assert_close(features(ours, units), cells(wanted))
            assert_close(ours.pool(units), expected.pooler_output[:, :, 0, 0])


def test_where_the_stride_sits_changes_the_features():
    encoder = random_statistics(Resnet.Config.tiny().build()).eval()
    moved = changed(encoder, stride_placement="1x1")
    with torch.no_grad():
        assert (features(encoder, pictures(48)) - features(moved, pictures(48))).abs().max() > 1e-2


@each_placement
def test_what_weft_writes_the_reference_loads_without_a_word_about_keys(tmp_path, first):
    theirs = reference(first)
    again = to_transformers(to_weft(theirs, tmp_path / "theirs"), transformers.ResNetModel, tmp_path / "ours")
    expected = theirs.state_dict()
    assert expected.keys() == again.state_dict().keys()
    assert all(torch.equal(value, expected[key]) for key, value in again.state_dict().items())
    assert again.config.downsample_in_bottleneck == first


def test_a_classifier_as_the_hub_has_it_gives_its_trunk_and_the_head_is_dropped_with_its_reason():
    whole = reference(cls=transformers.ResNetForImageClassification, num_labels=4)
    layout = checkpoint_formats()["resnet"]
    encoder = dataclasses.replace(layout.read_config(whole.config.to_dict()), image_size=64).build().eval()
    dropped = layout.key_map(encoder.config).load(encoder, dict(whole.state_dict()))
    assert dropped.keys() == {"classifier.1.weight", "classifier.1.bias"}
    with torch.no_grad():
        assert_close(encoder.pool(pictures(64)), whole.resnet(pictures(64)).pooler_output[:, :, 0, 0])


def test_with_free_statistics_training_equals_the_reference_and_updates_them_alike(tmp_path):
    theirs = reference()
    ours = changed(to_weft(theirs, tmp_path), image_size=64, frozen_statistics=False)
    assert_close(features(ours.train(), pictures(64)), cells(theirs.train()(pictures(64)).last_hidden_state))
    again = checkpoint_formats()["resnet"].key_map(ours.config).from_weft(ours.state_dict())
    moved = theirs.state_dict()
    for key in again:
        torch.testing.assert_close(again[key], moved[key], rtol=1e-5, atol=1e-5)  # float32 means over a batch
    assert moved["embedder.embedder.normalization.num_batches_tracked"] == 8


def test_frozen_statistics_stay_and_do_not_see_the_batch_while_scale_and_shift_train():
    encoder = random_statistics(Resnet.Config.tiny().build())
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    with torch.no_grad():
        expected = features(encoder.eval(), pictures(48))
    freeze(encoder, ["*"])
    set_training_mode(encoder)  # as the trainer does
    assert encoder.stem.norm.training
    found = features(encoder, pictures(48))
    assert torch.equal(found.detach(), expected)
    torch.testing.assert_close(features(encoder, pictures(48)[:1]), found[:1], rtol=0, atol=1e-5)  # float32, other blocking
    found.square().sum().backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in encoder.named_buffers())
    assert encoder.stem.norm.weight.grad.abs().sum() > 0 and encoder.stages[1][0].look.norm.bias.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("size", "trunk", "with_classifier"),
    [
        ("50", 23_508_032, 25_557_032),
        ("101", 42_500_160, 44_549_160),
        ("152", 58_143_808, 60_192_808),
    ],
)
def test_published_sizes_have_the_published_parameters_and_maps(size, trunk, with_classifier):
    config = Resnet.Config.sizes()[size]
    with torch.device("meta"):
        encoder = config.build()
        maps = [encoder.feature_map(torch.empty(1, 3, 224, 224), stages).shape[1:] for stages in range(5)]
        classifier = nn.Linear(config.pooled_width, 1000)
    assert sum(p.numel() for p in encoder.parameters()) == trunk
    assert trunk + sum(p.numel() for p in classifier.parameters()) == with_classifier
    assert maps == [(64, 56, 56), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
    assert config.layout() == MediaLayout(7, 7)


def test_the_grid_of_pixel_bert_has_252_cells():
    config = dataclasses.replace(Resnet.Config.sizes()["50"], image_size=800, image_width=1333)
    assert config.layout() == MediaLayout(25, 42)
    pooled = dataclasses.replace(config, grid_pool=2)
    assert pooled.layout() == MediaLayout(12, 21)
    with torch.device("meta"):
        values = features(pooled.build(), torch.empty(1, 3, 800, 1333))
    assert values.shape == (1, 252, 2048)


def test_pooling_the_grid_takes_the_largest_of_each_square():
    encoder = random_statistics(Resnet.Config.tiny().build()).eval()
    pooled = changed(encoder, image_size=56, grid_pool=2)
    whole = changed(encoder, image_size=56)
    assert (whole.config.layout(), pooled.config.layout()) == (MediaLayout(7, 7), MediaLayout(3, 3))
    with torch.no_grad():
        grid = features(whole, pictures(56)).unflatten(1, (7, 7))
        found = features(pooled, pictures(56)).unflatten(1, (3, 3))
    for y in range(3):
        for x in range(3):
            assert torch.equal(found[:, y, x], grid[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].amax((1, 2)))


def test_features_run_no_stage_that_they_do_not_need():
    encoder = dataclasses.replace(Resnet.Config.tiny(), feature_layer=-2).build().eval()
    with torch.no_grad():
        for parameter in encoder.stages[-1].parameters():
            parameter.fill_(float("nan"))
        assert features(encoder, pictures(48)).isfinite().all()
        assert encoder.pool(pictures(48)).isnan().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature_layer": 3}, "hidden state"),
        ({"widths": (16, 32, 64)}, "depths"),
        ({"widths": (16, 30)}, "a quarter as wide"),
        ({"grid_pool": 7}, "6x6 grid"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(Resnet.Config.tiny(), **change)


def test_a_picture_of_another_size_is_refused():
    with pytest.raises(DataError, match=r"\(N, 3, 48, 48\)"):
        features(Resnet.Config.tiny().build(), pictures(48, 64))


def test_what_the_layout_cannot_hold_is_refused():
    layout = checkpoint_formats()["resnet"]
    with pytest.raises(CheckpointError, match="eps"):
        layout.write_config(dataclasses.replace(Resnet.Config.tiny(), norm_eps=1e-3))
    for wrong in ({"layer_type": "basic"}, {"downsample_in_first_stage": True}, {"num_channels": 1}, {"hidden_act": "silu"}):
        with pytest.raises(CheckpointError, match=next(iter(wrong))):
            layout.read_config({"model_type": "resnet", **wrong})
