"""DINOv2 against `transformers`, from random weights through the real key map; the original's interpolation written out."""

import dataclasses
import math

import pytest
import torch
from reference_models import assert_close, randomise, to_transformers, to_weft
from safetensors.torch import load_file

from weft.checkpoints.checkpoint_format import checkpoint_formats
from weft.core.errors import CheckpointError, ConfigError, DataError
from weft.core.layout import MediaLayout
from weft.encoders.dinov2 import Dinov2
from weft.layers.position_interpolation import interpolate_positions

transformers = pytest.importorskip("transformers")

SHAPE = {
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "mlp_ratio": 2, "image_size": 30, "patch_size": 7,
    "layerscale_value": 0.5,
}  # fmt: skip
VARIANTS = {
    "plain": (transformers.Dinov2Model, {}),
    "gated": (transformers.Dinov2Model, {"use_swiglu_ffn": True, "use_mask_token": False}),
    "registers": (transformers.Dinov2WithRegistersModel, {"num_register_tokens": 3}),
    "gated registers": (transformers.Dinov2WithRegistersModel, {"use_swiglu_ffn": True}),
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def reference(variant: str):
    cls, more = VARIANTS[variant]
    return randomise(cls(cls.config_class(**SHAPE, **more)))


def pictures(side: int) -> torch.Tensor:
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(7))


def features(tower: Dinov2, units: torch.Tensor, **changes) -> torch.Tensor:
    """The features at other settings of the forward; the weights stay."""
    tower.config = dataclasses.replace(tower.config, **changes)
    return tower(units, torch.arange(len(units)), (tower.config.layout(),) * len(units)).values


def at_size(tower: Dinov2, side: int, **changes) -> Dinov2:
    """The same weights in a tower that takes pictures of another size."""
    config = dataclasses.replace(tower.config, image_size=side, **changes)
    other = config.build().eval()
    other.load_state_dict(tower.state_dict())
    return other


VERSION_5 = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "mlp.weights_out": "mlp.down_proj",
}


def in_version_5(file: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A file of the hub under the names that version 5 of the library gives its modules."""
    renamed = {}
    for key, value in file.items():
        for old, new in VERSION_5.items():
            key = key.replace(old, new)
        if "mlp.weights_in" in key:
            gate, up = value.chunk(2)
            renamed |= {key.replace("weights_in", "gate_proj"): gate, key.replace("weights_in", "up_proj"): up}
        else:
            renamed[key] = value
    return renamed


@each_variant
@pytest.mark.parametrize("spelling", ["version 4", "version 5"])
def test_features_and_pooled_vector_equal_the_reference_in_both_spellings(tmp_path, variant, spelling):
    theirs = reference(variant)
    ours = to_weft(theirs, tmp_path)  # the library writes the spelling of the hub
    if spelling == "version 5":
        layout = checkpoint_formats()[theirs.config.model_type]
        renamed = in_version_5(load_file(tmp_path / "model.safetensors"))
        assert not any("attention.attention" in key or "weights_" in key for key in renamed)
        ours = ours.config.build().eval()
        assert layout.key_map(ours.config).load(ours, renamed) == {}
    units = pictures(30)
    skip = 1 + ours.config.num_registers
    with torch.no_grad():
        expected = theirs(units, output_hidden_states=True)
        for layer in (-2, -1, 0):
            assert_close(features(ours, units, feature_layer=layer), expected.hidden_states[layer][:, skip:])
        assert_close(features(ours, units, feature_layer="normed"), expected.last_hidden_state[:, skip:])
        assert_close(ours.pool(units), expected.pooler_output)
        assert_close(ours.hidden_state(units, 3), expected.hidden_states[-1])  # with class token and registers
        kept = features(ours, units, feature_layer=-1, keep_class_token=True)
        assert_close(kept[:, 0], expected.hidden_states[-1][:, 0])
        assert_close(kept[:, 1:], expected.hidden_states[-1][:, skip:])


@each_variant
@pytest.mark.parametrize("side", [21, 44], ids=["smaller", "larger"])
def test_at_another_size_positions_are_interpolated_like_the_reference(tmp_path, variant, side):
    theirs = reference(variant)
    ours = at_size(to_weft(theirs, tmp_path), side)
    with torch.no_grad():
        expected = theirs(pictures(side), output_hidden_states=True).hidden_states[-1]
        assert_close(features(ours, pictures(side)), expected[:, 1 + ours.config.num_registers :])


def cubic(distance: float) -> float:
    """The weight of a sample at this distance: Keys' kernel with a = -0.75."""
    d, a = abs(distance), -0.75
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def sampling_weights(learned: int, side: int, offset: float) -> torch.Tensor:
    """How much of each learned row enters each new row, [side, learned]; beyond the border the border row counts."""
    weights = torch.zeros(side, learned, dtype=torch.float64)
    for row in range(side):
        place = (row + 0.5) * learned / (side + offset) - 0.5
        for tap in range(math.floor(place) - 1, math.floor(place) + 3):
            weights[row, min(max(tap, 0), learned - 1)] += cubic(place - tap)
    return weights


@pytest.mark.parametrize(("method", "offset"), [("offset", 0.1), ("plain", 0.0)])
@pytest.mark.parametrize("side", [3, 6, 9])
def test_interpolation_is_bicubic_with_the_published_offset(method, offset, side):
    learned, width = 7, 5
    grid = torch.randn(learned * learned, width, generator=torch.Generator().manual_seed(3))
    weights = sampling_weights(learned, side, offset)
    expected = torch.einsum("yr,xc,rcd->yxd", weights, weights, grid.double().view(learned, learned, width))
    found = interpolate_positions(grid, side, method)
    torch.testing.assert_close(found.double(), expected.reshape(side * side, width), rtol=0, atol=1e-5)  # float32 sums


@pytest.mark.parametrize("method", ["offset", "plain", "antialiased"])
def test_a_grid_that_fits_is_left_alone_and_low_precision_is_interpolated_in_float32(method):
    grid = torch.randn(49, 4, generator=torch.Generator().manual_seed(3))
    assert interpolate_positions(grid, 7, method) is grid
    low = grid.bfloat16()
    found = interpolate_positions(low, 5, method)
    assert torch.equal(found, interpolate_positions(low.float(), 5, method).bfloat16())


def test_the_three_ways_to_interpolate_differ_where_sizes_differ_and_only_there(tmp_path):
    tower = to_weft(reference("plain"), tmp_path)
    ways = ("offset", "plain", "antialiased")
    with torch.no_grad():
        native = [features(at_size(tower, 30, position_interpolation=way), pictures(30)) for way in ways]
        smaller = [features(at_size(tower, 21, position_interpolation=way), pictures(21)) for way in ways]
    assert torch.equal(native[0], native[1]) and torch.equal(native[0], native[2])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (smaller[one] - smaller[other]).abs().max() > 1e-2


@each_variant
def test_what_weft_writes_the_reference_loads_without_a_word_about_keys(tmp_path, variant):
    theirs = reference(variant)
    again = to_transformers(to_weft(theirs, tmp_path / "theirs"), type(theirs), tmp_path / "ours")
    expected = theirs.state_dict()
    assert expected.keys() == again.state_dict().keys()  # the mask token, which no picture needs, among them
    assert all(torch.equal(value, expected[key]) for key, value in again.state_dict().items())


@pytest.mark.parametrize(
    "cls", [transformers.Dinov2ForImageClassification, transformers.Dinov2WithRegistersForImageClassification]
)
def test_a_classifier_gives_its_tower_and_the_head_is_dropped_with_its_reason(cls):
    whole = randomise(cls(cls.config_class(**SHAPE, num_labels=4)))
    layout = checkpoint_formats()[whole.config.model_type]
    tower = layout.read_config(whole.config.to_dict()).build().eval()
    dropped = layout.key_map(tower.config).load(tower, dict(whole.state_dict()))
    assert dropped.keys() == {"classifier.weight", "classifier.bias"} and "classifier" in dropped["classifier.bias"]
    inside = whole.dinov2 if hasattr(whole, "dinov2") else whole.dinov2_with_registers
    with torch.no_grad():
        assert_close(tower.pool(pictures(30)), inside(pictures(30)).pooler_output)


def test_a_config_without_the_mask_token_drops_it_with_a_reason():
    theirs = reference("plain")
    layout = checkpoint_formats()["dinov2"]
    config = dataclasses.replace(layout.read_config(theirs.config.to_dict()), mask_token=False)
    dropped = layout.key_map(config).load(config.build(), dict(theirs.state_dict()))
    assert "pre-training" in dropped["embeddings.mask_token"]


def test_hub_configs_give_the_published_sizes():
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 518, "patch_size": 14}
    read = checkpoint_formats()["dinov2"].read_config
    published = Dinov2.Config.sizes()
    as_the_library = {"position_interpolation": "plain", "initial_scale": 1.0}
    saved = {"model_type": "dinov2", "mlp_ratio": 4, "layerscale_value": 1.0, "qkv_bias": True, **large}
    assert read(saved) == dataclasses.replace(published["l-14"], **as_the_library)
    saved = {"model_type": "dinov2_with_registers", "num_register_tokens": 4, **large}
    assert read(saved) == dataclasses.replace(published["l-14-registers"], initial_scale=1.0)
    giant = {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "image_size": [518, 518]}
    saved = {"model_type": "dinov2", "use_swiglu_ffn": True, **giant}
    assert read(saved) == dataclasses.replace(published["g-14"], **as_the_library)
    assert published["g-14"].feed_forward_width == 4096


def test_what_the_layout_cannot_hold_is_refused():
    layout = checkpoint_formats()["dinov2"]
    small = dataclasses.replace(Dinov2.Config.sizes()["l-14"], image_size=336)
    with pytest.raises(CheckpointError, match="interpolates positions 'plain', this tower 'offset'"):
        layout.write_config(small)
    assert layout.write_config(dataclasses.replace(small, position_interpolation="plain"))["image_size"] == 518
    with pytest.raises(CheckpointError, match="mask_token=True"):
        layout.write_config(dataclasses.replace(Dinov2.Config.sizes()["l-14-registers"], mask_token=False))
    for wrong in ({"qkv_bias": False}, {"num_channels": 4}, {"image_size": [28, 42]}):
        with pytest.raises(CheckpointError):
            layout.read_config({"model_type": "dinov2", **wrong})


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("s-14", 22_056_192),
        ("b-14", 86_579_712),
        ("l-14", 304_367_616),
        ("g-14", 1_136_479_232),
        # The four registers of 1024 come on top; an implementation that adds the class token's position to the token itself
        # counts 304,370,688, the position's 1024 less.
        ("l-14-registers", 304_370_688 + 1024),
    ],
)
def test_published_sizes_have_the_published_parameters(size, parameters):
    config = Dinov2.Config.sizes()[size]
    with torch.device("meta"):
        tower = config.build()
    assert sum(p.numel() for p in tower.parameters()) == parameters
    assert sum(b.numel() for b in tower.buffers()) == config.width  # the mask token
    assert config.layout() == MediaLayout(37, 37)


def test_at_336_pixels_the_large_tower_gives_the_576_features_of_a_mixture():
    config = dataclasses.replace(Dinov2.Config.sizes()["l-14"], image_size=336)
    with torch.device("meta"):
        features = config.build()(torch.empty(1, 3, 336, 336), torch.zeros(1), (config.layout(),))
    assert config.layout() == MediaLayout(24, 24)
    assert features.values.shape == (1, 576, 1024)


def test_features_run_no_block_that_they_do_not_need():
    tower = dataclasses.replace(Dinov2.Config.tiny(), feature_layer=-2).build().eval()
    with torch.no_grad():
        for parameter in [*tower.blocks[-1].parameters(), *tower.final_norm.parameters()]:
            parameter.fill_(float("nan"))
        assert features(tower, pictures(32)).isfinite().all()
        assert tower.pool(pictures(32)).isnan().all()


def test_wrong_layers_heads_and_pictures_are_refused():
    tiny = Dinov2.Config.tiny()
    with pytest.raises(ConfigError, match="hidden state"):
        dataclasses.replace(tiny, feature_layer=3)
    with pytest.raises(ConfigError, match="does not split into 3 heads"):
        dataclasses.replace(tiny, num_heads=3).build()
    with pytest.raises(DataError, match=r"\(N, 3, 32, 32\)"):
        features(tiny.build(), pictures(40))
