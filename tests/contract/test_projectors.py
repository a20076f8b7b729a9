"""What every input projector promises, with zero-initialised numbers at 0.5; a new one joins by existing."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from contract_conditions import is_key_bias, open_gates, reached
from safetensors.torch import load_file, save_file

from weft.core import config as configs
from weft.core.catalogue import parts
from weft.core.errors import ConfigError
from weft.core.interfaces import InputProjector
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures, MediaTokens

PROJECTORS = parts("projectors")
LAYOUTS = [
    MediaLayout(4, 4),
    MediaLayout(2, 6),
    MediaLayout(3, 5),  # odd both ways
    MediaLayout(7, 7),
    MediaLayout(1, 17),  # a class token kept: no grid
    MediaLayout(4, 4, frames=3),
    MediaLayout(4, 4, tile_rows=2, tile_columns=3, thumbnail="first", picture_size=(50, 31)),
]
WIDTH, OUTPUT_WIDTH = 24, 40
MIXED = {
    "frames": (MediaLayout(4, 4), MediaLayout(4, 4, frames=3), MediaLayout(4, 4, frames=2)),
    "grids": (MediaLayout(4, 6), MediaLayout(2, 12), MediaLayout(6, 4)),  # as many features in other grids
    "tiles": (
        MediaLayout(4, 4, tile_rows=1, tile_columns=2, thumbnail="first", picture_size=(40, 20)),
        MediaLayout(4, 4, tile_rows=2, tile_columns=2, thumbnail="last", picture_size=(20, 33)),
    ),
}
each_projector = pytest.mark.parametrize("name", PROJECTORS)


def build(name: str) -> InputProjector:
    torch.manual_seed(0)
    projector = PROJECTORS[name].Config.tiny().build(WIDTH, OUTPUT_WIDTH).eval()
    open_gates(projector)
    return projector


def features_of(layout: MediaLayout, count: int = 1, seed: int = 0) -> MediaFeatures:
    """`count` media of one layout, one unit a frame or tile."""
    units = count * layout.num_units
    values = torch.randn(units, layout.height * layout.width, WIDTH, generator=torch.Generator().manual_seed(seed))
    return MediaFeatures(values, torch.arange(units) // layout.num_units, (layout,) * count)


def legal(projector: InputProjector, layouts: Sequence[MediaLayout] = LAYOUTS) -> list[MediaLayout]:
    """The layouts that the projector takes; it says no by ConfigError before it computes anything."""
    taken = []
    for layout in layouts:
        try:
            projector.config.num_tokens(layout)
        except ConfigError:
            with pytest.raises(ConfigError), torch.no_grad():
                projector(features_of(layout))
            continue
        taken.append(layout)
    return taken


@each_projector
def test_tokens_emitted_are_tokens_promised(name):
    projector = build(name)
    taken = legal(projector)
    assert taken, "a projector takes at least one of the usual layouts"
    for layout in taken:
        with torch.no_grad():
            tokens = projector(features_of(layout, count=2))
        promised = projector.config.num_tokens(layout)
        assert tokens.values.shape == (2 * promised, OUTPUT_WIDTH)
        assert torch.bincount(tokens.item, minlength=2).tolist() == [promised, promised]


@each_projector
def test_tokens_come_in_item_order(name):
    projector = build(name)
    for layout in legal(projector):
        with torch.no_grad():
            item = projector(features_of(layout, count=3)).item
        assert (item.diff() >= 0).all()


@each_projector
def test_a_medium_alone_equals_the_same_medium_in_a_batch(name):
    projector = build(name)
    for layout in legal(projector):
        together = features_of(layout, count=3)
        with torch.no_grad():
            mixed = projector(together)
            for item in range(3):
                units = together.unit_item == item
                single = MediaFeatures(together.values[units], torch.zeros(layout.num_units, dtype=torch.long), (layout,))
                alone: MediaTokens = projector(single)
                torch.testing.assert_close(mixed.values[mixed.item == item], alone.values, rtol=0, atol=1e-5)  # float32


@each_projector
def test_a_medium_alone_equals_the_same_medium_among_others_of_another_layout(name):
    projector = build(name)
    taken = {kind: legal(projector, layouts) for kind, layouts in MIXED.items()}
    mixed_kinds = [kind for kind, layouts in taken.items() if len(layouts) > 1]
    assert mixed_kinds, "a projector takes at least one of the usual mixtures"
    for kind in mixed_kinds:
        layouts = tuple(taken[kind])
        length = layouts[0].height * layouts[0].width
        unit_item = torch.tensor([item for item, layout in enumerate(layouts) for _ in range(layout.num_units)])
        values = torch.randn(len(unit_item), length, WIDTH, generator=torch.Generator().manual_seed(4))
        with torch.no_grad():
            mixed = projector(MediaFeatures(values, unit_item, layouts))
            for item, layout in enumerate(layouts):
                own = values[unit_item == item]
                alone = projector(MediaFeatures(own, torch.zeros(len(own), dtype=torch.long), (layout,)))
                assert len(alone.values) == projector.config.num_tokens(layout)
                torch.testing.assert_close(mixed.values[mixed.item == item], alone.values, rtol=0, atol=1e-5)  # float32


@each_projector
def test_the_gradient_reaches_every_parameter_and_the_features_whatever_the_layout(name):
    projector = build(name)
    names = {n for n, _ in projector.named_parameters() if not is_key_bias(n)}
    for layout in legal(projector):
        features = features_of(layout, count=2)
        features.values.requires_grad_()
        assert names - reached(projector, projector(features).values) == set()
        assert features.values.grad is not None
        assert (features.values.grad.abs().sum((1, 2)) > 0).all()


@each_projector
@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16 weights", "autocast"])
def test_in_bfloat16_tokens_of_every_layout_are_finite_and_near(name, autocast):
    projector = build(name)
    layouts = legal(projector)
    inputs = [features_of(layout, count=2) for layout in layouts]
    with torch.no_grad():
        exact = [projector(features).values for features in inputs]
        projector = projector if autocast else projector.bfloat16()
        for layout, features, expected in zip(layouts, inputs, exact, strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                tokens = projector(replace(features, values=features.values.bfloat16()))
            assert autocast or tokens.values.dtype == torch.bfloat16
            assert len(tokens.values) == 2 * projector.config.num_tokens(layout)
            assert tokens.values.isfinite().all()
            # 8 bits of mantissa through a few layers: a few percent of the tokens' size
            assert (tokens.values.float() - expected).abs().mean() < 0.05 * expected.abs().mean()


@each_projector
def test_saved_and_loaded_it_gives_the_same_tokens(name, tmp_path):
    projector = build(name)
    save_file(projector.state_dict(), tmp_path / "projector.safetensors")
    again = configs.loads(configs.dumps(projector.config)).build(WIDTH, OUTPUT_WIDTH).eval()
    assert again.config == projector.config
    again.load_state_dict(load_file(tmp_path / "projector.safetensors"))
    features = features_of(legal(projector)[0], count=2)
    with torch.no_grad():
        assert torch.equal(projector(features).values, again(features).values)


@each_projector
def test_counting_tokens_needs_no_weights(name):
    config = PROJECTORS[name].Config.tiny()
    assert config.num_tokens(MediaLayout(4, 4)) == config.num_tokens(MediaLayout(4, 4)) > 0
    assert isinstance(config.num_tokens(MediaLayout(4, 4)), int)
