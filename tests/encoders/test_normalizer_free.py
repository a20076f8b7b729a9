"""What NFNet and its layers promise beyond parity: variances known in advance, identity at the start, grids of every size."""

import dataclasses
import math

import pytest
import torch

from weft.core.errors import ConfigError, DataError
from weft.core.layout import MediaLayout
from weft.encoders.nfnet import Nfnet
from weft.layers.feed_forward import activation
from weft.layers.normalizer_free_block import NormalizerFreeBlock, deviations
from weft.layers.scaled_convolution import GAMMA, ScaledConvolution, scaled_activation


def pictures(config, count: int = 2) -> torch.Tensor:
    return torch.randn(count, *config.unit_shape, generator=torch.Generator().manual_seed(0))


def features(encoder: Nfnet, pixels: torch.Tensor) -> torch.Tensor:
    return encoder(pixels, torch.arange(len(pixels)), (encoder.config.layout(),) * len(pixels)).values


def variance(x: torch.Tensor) -> float:
    """Over samples and positions, channel by channel, then the mean of the channels."""
    return float(x.var((0, 2, 3), correction=0).mean())


@pytest.mark.parametrize("name", GAMMA)
def test_a_scaled_activation_keeps_the_variance_of_a_standard_normal(name):
    z = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)

    def mean(values: torch.Tensor) -> float:
        return float(torch.trapezoid(values * density, z))

    scaled = scaled_activation(name)(z)
    # the published constants were estimated by sampling and are off by about a thousandth
    assert mean(scaled**2) - mean(scaled) ** 2 == pytest.approx(1, abs=2e-3)
    assert mean(activation(name)(z) ** 2) < 0.6  # without the constant it would not


def test_a_kernel_is_standardised_whatever_the_weight():
    torch.manual_seed(0)
    layer = ScaledConvolution(8, 12, 3, groups=2)
    x = torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        layer.gain.copy_(torch.rand(12) + 0.5)
        kernel, out = layer.kernel(), layer(x)
        assert kernel.mean((1, 2, 3)).abs().max() < 1e-7
        torch.testing.assert_close(kernel.var((1, 2, 3), correction=0), layer.gain**2 / 36)
        layer.weight.mul_(7).add_(3)  # scale and shift are taken out again, up to the rounding of the shifted weights
        torch.testing.assert_close(layer(x), out, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("side", "stride", "expected"), [(8, 2, 4), (7, 2, 4), (7, 1, 7), (1, 2, 1)])
def test_a_side_leaves_with_one_position_per_stride_begun(side, stride, expected):
    layer = ScaledConvolution(2, 3, 3, stride)
    assert layer(torch.zeros(1, 2, side, side + 2 * stride)).shape == (1, 3, expected, expected + 2)


def test_expected_deviations_are_those_of_the_published_f0():
    betas = [1 / deviation for stage in deviations((1, 2, 6, 3), 0.2) for deviation in stage]
    published = [1, 0.98058, 0.98058, 0.96225, 0.98058, 0.96225, 0.94491, 0.92848, 0.91287, 0.89803, 0.98058, 0.96225]
    assert betas == pytest.approx(published, abs=5e-6)
    encoder = dataclasses.replace(Nfnet.Config.tiny(), depths=(1, 2, 6, 3)).build()
    assert [1 / block.input_deviation for stage in encoder.stages for block in stage] == betas


def stage_of_blocks(expected: list[float]) -> list[NormalizerFreeBlock]:
    """A stage with the skips opened and alpha = 1, where each block adds 1 to the variance."""
    torch.manual_seed(0)
    blocks = [
        NormalizerFreeBlock(128 if place else 64, 128, group_width=64, alpha=1.0, input_deviation=deviation)
        for place, deviation in enumerate(expected)
    ]
    for block in blocks:
        block.skip_gain.data.fill_(1.0)
    return blocks


def variances(blocks: list[NormalizerFreeBlock]) -> list[float]:
    x, found = torch.randn(2, 64, 32, 32, generator=torch.Generator().manual_seed(1)), []
    with torch.no_grad():
        for block in blocks:
            x = block(x)
            found.append(variance(x))
    return found


def test_the_variance_grows_as_the_expected_deviations_say():
    """Within 10%: at the edge of a 32 x 32 grid a 3 x 3 kernel lacks inputs, and 128 channels are few to average over."""
    (expected,) = deviations((6,), 1.0)
    assert variances(stage_of_blocks(expected)) == pytest.approx([2, 3, 4, 5, 6, 7], rel=0.1)
    assert variances(stage_of_blocks([1.0] * 6))[-1] > 30  # without the division the variance doubles with every block


def test_a_strided_block_keeps_what_does_not_average_out():
    """A picture of 2 x 2 cells passes the pooled shortcut whole: variance 1, plus alpha ** 2 of the branch."""
    torch.manual_seed(0)
    block = NormalizerFreeBlock(128, 256, stride=2)
    block.skip_gain.data.fill_(1.0)
    cells = torch.randn(8, 128, 6, 6).repeat_interleave(2, 2).repeat_interleave(2, 3)
    with torch.no_grad():
        assert variance(block(cells)) == pytest.approx(1.04, rel=0.05)  # 288 positions a channel


def test_a_fresh_block_without_transition_is_exactly_the_identity():
    torch.manual_seed(0)
    encoder = Nfnet.Config.tiny().build()
    block = encoder.stages[2][1]
    x = torch.randn(2, 64, 5, 5)
    with torch.no_grad():
        assert torch.equal(block(x), x)
        block.skip_gain.fill_(0.1)
        assert not torch.equal(block(x), x)
    assert encoder.stages[2][0].shortcut is not None


def test_stochastic_depth_drops_whole_samples_in_training_and_scales_nothing_up():
    torch.manual_seed(0)
    block = NormalizerFreeBlock(32, 32, group_width=16, drop_rate=0.25)
    block.skip_gain.data.fill_(1.0)
    x = torch.randn(400, 32, 2, 2)
    with torch.no_grad():
        whole = block.eval()(x)
        assert torch.equal(whole, block(x))
        dropped = block.train()(x)
    lost = torch.tensor([torch.equal(a, b) for a, b in zip(dropped, x, strict=True)])
    assert 0.18 < lost.float().mean() < 0.32  # 3 deviations of a mean of 400 draws at 0.25
    assert torch.equal(dropped[~lost], whole[~lost])


def test_the_rate_of_stochastic_depth_rises_with_the_block():
    encoder = dataclasses.replace(Nfnet.Config.tiny(), depths=(1, 2, 1, 1), stochastic_depth=0.5).build()
    assert [block.dropping.rate for stage in encoder.stages for block in stage] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    pixels = pictures(encoder.config)
    with torch.no_grad():
        for stage in encoder.stages:
            for block in stage:
                block.skip_gain.fill_(1.0)
        assert torch.equal(encoder.eval().pool(pixels), encoder.pool(pixels))
        assert not torch.equal(encoder.train().pool(pixels), encoder.pool(pixels))


def test_a_published_network_gives_the_published_grid():
    config = Nfnet.Config.sizes()["f0-192"]
    with torch.device("meta"):
        encoder = config.build()
        assert features(encoder, torch.empty(1, 3, 192, 192)).shape == (1, 36, 3072)
        encoder.config = dataclasses.replace(config, feature_layer="last_stage")
        assert features(encoder, torch.empty(1, 3, 192, 192)).shape == (1, 36, 1536) == (1, 36, encoder.config.output_width)


@pytest.mark.parametrize(("image_size", "side"), [(288, 9), (320, 10), (576, 18), (289, 10), (31, 1)])
def test_the_layout_follows_the_resolution(image_size, side):
    config = dataclasses.replace(Nfnet.Config.sizes()["f6-448"], image_size=image_size)
    assert config.layout() == MediaLayout(side, side)


def test_features_are_laid_out_row_by_row():
    torch.manual_seed(0)
    encoder = dataclasses.replace(Nfnet.Config.tiny(), image_size=100).build().eval()
    pixels = pictures(encoder.config, 1)
    with torch.no_grad():
        grid = encoder.final_grid(pixels)
        assert grid.shape == (1, 128, 4, 4)
        assert torch.equal(features(encoder, pixels)[0, 1], grid[0, :, 0, 1])
        assert torch.equal(features(encoder, pixels)[0, 4], grid[0, :, 1, 0])


def test_the_weights_fit_every_resolution():
    torch.manual_seed(0)
    small = Nfnet.Config.tiny().build().eval()
    large = dataclasses.replace(small.config, image_size=96).build().eval()
    large.load_state_dict(small.state_dict())
    with torch.no_grad():
        assert features(large, pictures(large.config)).shape == (2, 9, 128)


@pytest.mark.parametrize("shape", [(48, 64), (64, 64)], ids=["not square", "another size"])
def test_a_picture_of_another_shape_is_refused_with_both_ways_out(shape):
    encoder = Nfnet.Config.tiny().build()
    with pytest.raises(DataError, match=r"takes \(N, 3, 48, 48\).*the processor's image size.*the encoder's image_size"):
        encoder.pool(torch.zeros(1, 3, *shape))


def test_features_of_the_last_stage_run_no_convolution_behind_it():
    config = dataclasses.replace(Nfnet.Config.tiny(), feature_layer="last_stage")
    encoder = config.build().eval()
    with torch.no_grad():
        encoder.final.weight.fill_(float("nan"))
        assert features(encoder, pictures(config)).isfinite().all()
        assert encoder.pool(pictures(config)).isnan().all()


def test_it_trains_under_autocast():
    """Every weight of a network with its skips open gets a gradient in float32, from features in bfloat16."""
    torch.manual_seed(0)
    encoder = Nfnet.Config.tiny().build()
    for name, parameter in encoder.named_parameters():
        if name.endswith("skip_gain"):
            parameter.data.fill_(0.5)
    with torch.autocast("cpu", torch.bfloat16):
        values = features(encoder, pictures(encoder.config))
    assert values.dtype == torch.bfloat16
    values.float().square().mean().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all() and (parameter.grad != 0).any(), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": (1, 2)}, "four stages"),
        ({"image_size": 0}, "at least one pixel"),
        ({"stochastic_depth": 1.0}, "a rate below 1"),
        ({"activation": "quick_gelu"}, "unknown scaled activation 'quick_gelu'"),
        ({"group_width": 10}, "32 channels does not divide into groups of 10"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(Nfnet.Config.tiny(), **changes).build()
