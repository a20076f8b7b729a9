"""What every modality encoder promises; a new one joins by existing."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from weft.core import config as configs
from weft.core.catalogue import parts
from weft.core.errors import ConfigError
from weft.core.interfaces import ModalityEncoder

ENCODERS = {name: cls for name, cls in parts("encoders").items() if issubclass(cls, ModalityEncoder)}
each_encoder = pytest.mark.parametrize("name", ENCODERS)


def build(name: str) -> ModalityEncoder:
    torch.manual_seed(0)
    return ENCODERS[name].Config.tiny().build().eval()


def example_units(encoder: ModalityEncoder, count: int) -> torch.Tensor:
    """Units of the shape that the encoder's config names."""
    return torch.randn(count, *encoder.config.unit_shape, generator=torch.Generator().manual_seed(1))


def encode(encoder: ModalityEncoder, units: torch.Tensor):
    return encoder(units, torch.arange(len(units)), (encoder.config.layout(),) * len(units))


@each_encoder
def test_shapes_and_layout_agree(name):
    encoder = build(name)
    with torch.no_grad():
        features = encode(encoder, example_units(encoder, 3))
    layout = encoder.config.layout()
    assert features.values.shape == (3, layout.positions, encoder.config.output_width)
    assert features.layout == (layout,) * 3
    assert features.unit_item.tolist() == [0, 1, 2]
    assert features.values.isfinite().all()


@each_encoder
def test_several_units_of_one_item_keep_their_item(name):
    encoder = build(name)
    layout = encoder.config.layout()
    with torch.no_grad():
        features = encoder(example_units(encoder, 3), torch.tensor([0, 0, 1]), (layout, layout))
    assert features.unit_item.tolist() == [0, 0, 1]
    assert len(features.values) == 3


@each_encoder
def test_a_medium_alone_equals_the_same_medium_in_a_batch(name):
    encoder = build(name)
    units = example_units(encoder, 3)
    with torch.no_grad():
        together = encode(encoder, units).values
        for index in range(3):
            alone = encode(encoder, units[index : index + 1]).values
            torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-5)  # float32, other blocking


@each_encoder
def test_pooled_vectors_have_their_promised_width_and_do_not_depend_on_neighbours(name):
    encoder = build(name)
    units = example_units(encoder, 3)
    with torch.no_grad():
        try:
            pooled = encoder.pool(units)
        except ConfigError:
            pytest.skip("this encoder has no pooling of its own and says so")
        assert pooled.shape == (3, encoder.config.pooled_width)
        torch.testing.assert_close(pooled[1:2], encoder.pool(units[1:2]), rtol=0, atol=1e-5)


@each_encoder
def test_saved_and_loaded_it_gives_the_same_features(name, tmp_path):
    encoder = build(name)
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    again = configs.loads(configs.dumps(encoder.config)).build().eval()
    assert again.config == encoder.config
    again.load_state_dict(load_file(tmp_path / "encoder.safetensors"))
    units = example_units(encoder, 2)
    with torch.no_grad():
        assert torch.equal(encode(encoder, units).values, encode(again, units).values)


@each_encoder
def test_the_gradient_reaches_every_part_that_features_or_pooling_use(name):
    """Each parameter is reached by the features or by the pooled vector: nothing in an encoder is dead weight."""
    encoder = build(name)
    units = example_units(encoder, 2).requires_grad_()
    probe = torch.randn(encoder.config.output_width, generator=torch.Generator().manual_seed(2))
    (encode(encoder, units).values @ probe).sum().backward()
    assert units.grad is not None and units.grad.abs().sum() > 0
    reached = {name for name, p in encoder.named_parameters() if p.grad is not None}
    try:
        encoder.pool(units).square().sum().backward()
    except ConfigError:
        pytest.skip("no pooling: the parts behind the feature layer are not used")
    reached |= {name for name, p in encoder.named_parameters() if p.grad is not None}
    assert reached == {name for name, _ in encoder.named_parameters()}


@each_encoder
def test_in_bfloat16_the_features_are_finite_and_near(name):
    encoder = build(name)
    units = example_units(encoder, 2)
    with torch.no_grad():
        exact = encode(encoder, units).values
        reduced = encode(encoder.bfloat16(), units).values
    assert reduced.dtype == torch.bfloat16
    assert reduced.isfinite().all()
    # 8 bits of mantissa through a few layers: a few percent of the features' size
    assert (reduced.float() - exact).abs().mean() < 0.05 * exact.abs().mean()


@each_encoder
def test_every_published_size_builds_without_memory_and_knows_its_grid(name):
    for size in ENCODERS[name].Config.sizes().values():
        with torch.device("meta"):
            encoder = size.build()
        assert sum(p.numel() for p in encoder.parameters()) > 0
        assert size.layout().positions > 0
