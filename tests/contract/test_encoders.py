"""What every modality encoder promises, in every form that is published; a new one joins by existing.

Zero-initialised numbers are 0.5, and media are as long as their encoder reads together: videos of several frames, pictures of
several tiles.
"""

import re
from dataclasses import replace

import pytest
import torch
from contract_conditions import is_key_bias, open_gates, reached, tiny_forms
from safetensors.torch import load_file, save_file

from weft.core import config as configs
from weft.core.catalogue import parts
from weft.core.errors import ConfigError
from weft.core.interfaces import ModalityEncoder
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.encoders.eva_clip import EvaClipVision
from weft.encoders.hubert import Hubert
from weft.encoders.siglip import SiglipVision
from weft.encoders.video import Video
from weft.layers.attention import join_projections

ENCODERS = {name: cls for name, cls in parts("encoders").items() if issubclass(cls, ModalityEncoder)}
FORMS = tiny_forms("encoders", ModalityEncoder.Config)
each_encoder = pytest.mark.parametrize("name", FORMS)


def build(name: str) -> ModalityEncoder:
    torch.manual_seed(0)
    encoder = FORMS[name].build().eval()
    open_gates(encoder)
    return encoder


def layouts_of(encoder: ModalityEncoder) -> tuple[MediaLayout, ...]:
    """Three media of different lengths where the encoder reads a medium's units together."""
    one = encoder.config.layout()
    if encoder.config.modality == "video":
        return tuple(replace(one, frames=frames) for frames in (2, 3, 1))
    if hasattr(encoder.config, "max_tiles"):
        return tuple(replace(one, tile_columns=tiles) for tiles in (2, 3, 1))
    return (one,) * 3


def example_units(encoder: ModalityEncoder, count: int) -> torch.Tensor:
    """Units of the shape that the encoder's config names."""
    return torch.randn(count, *encoder.config.unit_shape, generator=torch.Generator().manual_seed(1))


def items_of(layouts: tuple[MediaLayout, ...]) -> torch.Tensor:
    return torch.arange(len(layouts)).repeat_interleave(torch.tensor([layout.num_units for layout in layouts]))


def example(encoder: ModalityEncoder) -> tuple[torch.Tensor, tuple[MediaLayout, ...]]:
    layouts = layouts_of(encoder)
    return example_units(encoder, len(items_of(layouts))), layouts


def encode(encoder: ModalityEncoder, units: torch.Tensor, layouts: tuple[MediaLayout, ...]) -> MediaFeatures:
    return encoder(units, items_of(layouts), layouts)


def pools(encoder: ModalityEncoder) -> bool:
    """Whether it has a pooling of its own; a form may leave its head out."""
    match encoder.config:
        case SiglipVision.Config(pooling_head=False) | EvaClipVision.Config(embedding_width=None):
            return False
    return type(encoder).pool is not ModalityEncoder.pool


def unread(encoder: ModalityEncoder) -> str:
    """The parameters that neither features nor pooling read, as a pattern."""
    match encoder.config:
        case Hubert.Config():
            return "mask_embedding"  # what stands in the place of a hidden frame, in pre-training alone
        case SiglipVision.Config(pooling_head=False):
            return r"(blocks\.1|final_norm)\..*"  # behind the features' layer, where nothing but the head would read them
        case Video.Config(temporal="attention"):
            return r"image\.blocks\.1\.before_attention\..*"  # behind the features' layer, where pictures alone are pooled
    return ""


def behind_features(encoder: ModalityEncoder) -> set[str]:
    """What lies behind the layer of the features and is read by pooling alone, the encoder's own or that of a tower inside."""
    found = set()
    for place, tower in encoder.named_modules():
        if isinstance(tower, ModalityEncoder) and pools(tower):
            units, layouts = example(tower)
            names = reached(tower, tower.pool(units)) - reached(tower, encode(tower, units, layouts).values)
            found |= {f"{place}.{name}" if place else name for name in names}
    return found


@torch.no_grad()
@each_encoder
def test_joined_projections_give_the_same_features(monkeypatch, name):
    monkeypatch.setattr("weft.layers.attention.joining_pays", lambda weight: True)  # in float32 too, to compare closely
    encoder = build(name)
    units, layouts = example(encoder)
    expected = encode(encoder, units, layouts).values
    join_projections(encoder)
    found = encode(encoder, units, layouts).values
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max().item()))


@each_encoder
def test_shapes_and_layout_agree(name):
    encoder = build(name)
    units, layouts = example(encoder)
    with torch.no_grad():
        features = encode(encoder, units, layouts)
    assert features.values.shape == (len(units), encoder.config.layout().positions, encoder.config.output_width)
    assert features.layout == layouts
    assert features.unit_item.equal(items_of(layouts))
    assert features.values.isfinite().all()


@each_encoder
def test_several_units_of_one_item_keep_their_item(name):
    encoder = build(name)
    one = encoder.config.layout()
    two = replace(one, frames=2) if encoder.config.modality == "video" else replace(one, tile_columns=2)
    with torch.no_grad():
        features = encode(encoder, example_units(encoder, 3), (two, one))
    assert features.unit_item.tolist() == [0, 0, 1]
    assert len(features.values) == 3


@each_encoder
def test_a_medium_alone_equals_the_same_medium_in_a_batch(name):
    encoder = build(name)
    units, layouts = example(encoder)
    with torch.no_grad():
        together = encode(encoder, units, layouts).values
        for item, layout in enumerate(layouts):
            own = items_of(layouts) == item
            alone = encode(encoder, units[own], (layout,)).values
            atol = 1e-5 * max(1.0, float(alone.abs().max()))  # float32, other blocking
            torch.testing.assert_close(together[own], alone, rtol=0, atol=atol)


@each_encoder
def test_pooled_vectors_have_their_promised_width_and_do_not_depend_on_neighbours(name):
    encoder = build(name)
    units = example_units(encoder, 3)
    if not pools(encoder):
        with pytest.raises(ConfigError, match=r"no pooled output|pooling_head=True|set embedding_width"):
            encoder.pool(units)
        return
    with torch.no_grad():
        pooled = encoder.pool(units)
        assert pooled.shape == (3, encoder.config.pooled_width)
        torch.testing.assert_close(pooled[1:2], encoder.pool(units[1:2]), rtol=0, atol=1e-5)


@each_encoder
def test_saved_and_loaded_it_gives_the_same_features(name, tmp_path):
    encoder = build(name)
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    again = configs.loads(configs.dumps(encoder.config)).build().eval()
    assert again.config == encoder.config
    again.load_state_dict(load_file(tmp_path / "encoder.safetensors"))
    units, layouts = example(encoder)
    with torch.no_grad():
        assert torch.equal(encode(encoder, units, layouts).values, encode(again, units, layouts).values)


@each_encoder
def test_the_gradient_reaches_every_parameter_that_is_not_said_to_be_unread(name):
    """Features reach all that leads to them, and pooling what lies behind: nothing in an encoder is dead weight."""
    encoder = build(name)
    units, layouts = example(encoder)
    units.requires_grad_()
    read = reached(encoder, encode(encoder, units, layouts).values)
    assert (units.grad.flatten(1).abs().sum(1) > 0).all()
    names = {n for n, _ in encoder.named_parameters() if not is_key_bias(n)}
    assert names - read - behind_features(encoder) == {n for n in names if re.fullmatch(unread(encoder), n)}


@each_encoder
@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16 weights", "autocast"])
def test_in_bfloat16_features_and_pooled_vectors_are_finite_and_near(name, autocast):
    encoder = build(name)
    units, layouts = example(encoder)

    def results():
        return [encode(encoder, units, layouts).values, *([encoder.pool(units)] if pools(encoder) else [])]

    with torch.no_grad():
        exact = results()
        encoder = encoder if autocast else encoder.bfloat16()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            reduced = results()
    for ours, expected in zip(reduced, exact, strict=True):
        assert autocast or ours.dtype == torch.bfloat16
        assert ours.isfinite().all()
        # 8 bits of mantissa through a few layers: a few percent of the features' size
        assert (ours.float() - expected).abs().mean() < 0.05 * expected.abs().mean()


@pytest.mark.parametrize("name", ENCODERS)
def test_every_published_size_builds_without_memory_and_knows_its_grid(name):
    for size in ENCODERS[name].Config.sizes().values():
        with torch.device("meta"):
            encoder = size.build()
        assert sum(p.numel() for p in encoder.parameters()) > 0
        assert size.layout().positions > 0
