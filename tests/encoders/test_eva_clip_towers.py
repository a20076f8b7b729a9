"""What EVA-CLIP's towers promise beyond parity."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from weft.core.attention_rule import AttentionRule
from weft.core.errors import ConfigError
from weft.core.layout import MediaLayout
from weft.encoders.clip import ClipText, ClipVision
from weft.encoders.eva_clip import EvaClipVision
from weft.layers.patch_dropout import PatchDropout
from weft.layers.rotary import rotate
from weft.layers.rotary_2d import Rotary2d, grid_places
from weft.layers.slots import BlockContext
from weft.layers.transformer import run_blocks
from weft.systems.dual_encoder import DualEncoder

TINY = EvaClipVision.Config.tiny()
PRE_NORM = dataclasses.replace(TINY, block="pre_norm", rotary_side=None)
TOWERS = {
    "pre_norm": PRE_NORM,
    "sub_norm": TINY,
    "residual_post_norm": dataclasses.replace(PRE_NORM, block="residual_post_norm"),
    "blip_2": dataclasses.replace(
        PRE_NORM, embedding_width=None, feature_layer=-1, feature_norm_eps=1e-5, keep_class_token=True
    ),
}
each_tower = pytest.mark.parametrize("config", TOWERS.values(), ids=TOWERS.keys())
each_head = pytest.mark.parametrize("config", list(TOWERS.values())[:3], ids=list(TOWERS)[:3])


def build(config):
    torch.manual_seed(0)
    return config.build().eval()


def pictures(config, count=2):
    return torch.randn(count, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(1))


def encode(encoder, units):
    return encoder(units, torch.arange(len(units)), (encoder.config.layout(),) * len(units)).values


def names_with_gradient(encoder):
    return {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}


# Every block type


@each_tower
def test_the_gradient_reaches_every_parameter(config):
    encoder = build(config)
    units = pictures(config)
    probe = torch.randn(config.output_width, generator=torch.Generator().manual_seed(2))
    (encode(encoder, units) @ probe).sum().backward()
    if config.embedding_width is not None:
        encoder.pool(units).square().sum().backward()
    assert names_with_gradient(encoder) == {name for name, _ in encoder.named_parameters()}


@each_tower
def test_in_bfloat16_the_features_are_finite_and_near(config):
    encoder, units = build(config), pictures(config)
    with torch.no_grad():
        exact = encode(encoder, units)
        reduced = encode(encoder.bfloat16(), units)
    assert reduced.dtype == torch.bfloat16
    # 8 bits of mantissa through a few layers: a few percent of the features' size
    assert (reduced.float() - exact).abs().mean() < 0.05 * exact.abs().mean()


@each_tower
def test_it_runs_under_autocast(config):
    encoder, units = build(config), pictures(config)
    with torch.autocast("cpu", torch.bfloat16):
        values = encode(encoder, units)
    values.float().square().mean().backward()
    assert values.isfinite().all()
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.grad is not None)


@each_head
def test_features_run_no_block_that_they_do_not_need(config):
    encoder = build(config)
    with torch.no_grad():
        for parameter in [*encoder.blocks[-1].parameters(), *encoder.final_norm.parameters()]:
            parameter.fill_(float("nan"))
        assert encode(encoder, pictures(config)).isfinite().all()
        assert encoder.pool(pictures(config)).isnan().all()


@each_tower
def test_the_published_start(config):
    """Deviations of 0.02; of the last layer of each branch over sqrt(2i) in block i from 1, of the head a thousandth of it."""
    wide = dataclasses.replace(config, width=256, num_layers=3, num_heads=4, feed_forward_width=256)
    encoder = build(wide)
    state = {name: value.detach() for name, value in encoder.state_dict().items()}
    near = {"rel": 0.05}  # of thousands of numbers each: their deviation is known within a percent or two
    assert float(state["position_embedding"].std()) == pytest.approx(0.02, **near)
    for depth, block in enumerate(encoder.blocks, start=1):
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear):
                is_last = name.startswith(("attention.output", "feed_forward.down"))
                expected = 0.02 / math.sqrt(2 * depth) if is_last else 0.02
                assert float(module.weight.detach().std()) == pytest.approx(expected, **near), name
                assert module.bias is None or not module.bias.any()
        assert block.attention.key.bias is None
    if encoder.head is not None:
        assert float(state["head.weight"].std()) == pytest.approx(2e-5, **near)


def test_blip_2_tower_gives_all_257_tokens_normed_and_has_no_pooled_vector():
    published = EvaClipVision.Config.sizes()["g-14-blip-2"]
    assert (published.layout(), published.output_width) == (MediaLayout(1, 257), 1408)
    narrow = dataclasses.replace(published, width=16, num_heads=1, num_layers=1, feed_forward_width=16)
    with torch.no_grad():
        assert encode(build(narrow), pictures(narrow, 1)).shape == (1, 257, 16)
    tiny = build(TOWERS["blip_2"])
    with torch.no_grad():
        values = encode(tiny, pictures(TINY))
    assert values.mean(-1).abs().max() < 1e-5 and (values.std(-1, correction=0) - 1).abs().max() < 1e-2
    with pytest.raises(ConfigError, match="embedding_width"):
        tiny.pool(pictures(TINY))


def test_only_the_features_norm_trains_where_the_trunk_is_frozen():
    encoder = build(TOWERS["blip_2"])
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(name.startswith("feature_norm."))
    encode(encoder, pictures(TINY)).square().sum().backward()
    assert names_with_gradient(encoder) == {"feature_norm.weight", "feature_norm.bias"}


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ConfigError, match="7 heads"):
        dataclasses.replace(PRE_NORM, num_heads=7)
    with pytest.raises(ConfigError, match="four parts"):
        dataclasses.replace(TINY, width=60, num_heads=10)
    with pytest.raises(ConfigError, match="hidden state"):
        dataclasses.replace(TINY, feature_layer=3)


# Rotary positions on a grid


def products(place_of_query, place_of_key, head_width=16):
    generator = torch.Generator().manual_seed(4)
    rotary = Rotary2d(head_width)
    query, key = torch.randn(2, 1, 1, 1, head_width, generator=generator)
    places = torch.tensor([[place_of_query], [place_of_key]], dtype=torch.float32)
    query, key = rotate(query, rotary(places[:1])), rotate(key, rotary(places[1:]))
    return float((query * key).sum())


def test_a_product_depends_on_the_difference_of_rows_and_columns_only():
    reference = products((3, 5), (1, 9))
    for row, column in ((0, 0), (2, -1), (10, 30)):
        assert products((3 + row, 5 + column), (1 + row, 9 + column)) == pytest.approx(reference, abs=1e-4)
    assert abs(products((5, 3), (9, 1)) - reference) > 1e-2, "rows and columns are told apart"
    assert abs(products((3, 5), (2, 9)) - reference) > 1e-2


def test_the_class_token_is_not_turned():
    cos, sin = Rotary2d(16)(grid_places(4, 16, torch.device("cpu")))
    heads = torch.randn(1, 2, 17, 16, generator=torch.Generator().manual_seed(5))
    turned = rotate(heads, (cos, sin))
    assert torch.equal(turned[:, :, 0], heads[:, :, 0])
    assert not torch.allclose(turned[:, :, 2:], heads[:, :, 2:], atol=1e-2)


def test_a_finer_grid_lies_between_the_trained_places():
    """At 336 pixels, 24 patches stand on the 16 places that were trained at 224: every third one coincides."""
    coarse, fine = (grid_places(side, 16, torch.device("cpu"))[0, 1:].view(side, side, 2) for side in (16, 24))
    assert torch.allclose(fine[::3, ::3], coarse[::2, ::2])
    assert fine.max() == pytest.approx(16 * 23 / 24)


def test_frequencies_stay_in_float32():
    encoder = build(TINY).bfloat16()
    cos, _ = encoder.rotary(grid_places(4, 3, torch.device("cpu")))
    assert cos.dtype == torch.float32


# Patch dropout


def numbered_tokens(pictures, patches):
    """Tokens that carry their own number, and places that do too."""
    numbers = torch.arange(patches + 1, dtype=torch.float32)
    return numbers.view(1, -1, 1).repeat(pictures, 1, 3), numbers.view(1, -1, 1).repeat(1, 1, 2)


def test_half_of_256_patches_and_the_class_token_stay_while_training():
    torch.manual_seed(0)
    hidden, places = PatchDropout(0.5).train()(*numbered_tokens(4, 256))
    assert hidden.shape == (4, 129, 3) and places.shape == (4, 129, 2)
    assert torch.equal(hidden[..., :2], places), "a token and its place stay together"
    assert (hidden[:, 0] == 0).all(), "the class token is first"
    for kept in hidden[:, 1:, 0]:
        assert len(kept.unique()) == 128 and kept.min() >= 1
        assert not torch.equal(kept, kept.sort().values), "the order is random"
    assert len({tuple(kept.sort().values.tolist()) for kept in hidden[..., 0]}) == 4, "each picture loses patches of its own"


def test_in_evaluation_nothing_is_dropped():
    tokens, places = numbered_tokens(2, 16)
    for dropout in (PatchDropout(0.5).eval(), PatchDropout(0.0).train()):
        hidden, kept = dropout(tokens, places)
        assert hidden is tokens and kept is places


def test_one_patch_at_least_stays_and_all_cannot_go():
    hidden, _ = PatchDropout(0.99).train()(*numbered_tokens(1, 9))
    assert hidden.shape[1] == 2
    with pytest.raises(ConfigError, match="below 1"):
        PatchDropout(1.0)


@pytest.mark.parametrize("block", ["sub_norm", "pre_norm"])
def test_pooling_in_training_equals_the_tower_on_the_kept_patches_in_their_own_places(block):
    config = dataclasses.replace(TOWERS[block], patch_dropout=0.4)
    encoder, units = build(config), pictures(config, 1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(std=0.3)
        embedded = encoder.hidden_state(units, 0)
        places = grid_places(4, config.rotary_side or 4, units.device)
        torch.manual_seed(6)
        pooled = encoder.train().pool(units)
        torch.manual_seed(6)
        _, numbers = encoder.patch_dropout(embedded, torch.arange(17).view(1, 17, 1))
        kept = numbers[0, :, 0].sort().values  # in the grid's order: attention knows no other
        rotary = None if encoder.rotary is None else encoder.rotary(places[:, kept])
        rule = AttentionRule.bidirectional(1, len(kept), units.device)
        hidden = run_blocks(encoder.blocks, embedded[:, kept], BlockContext(rule, rotary=rotary))
        expected = encoder.head(encoder.final_norm(hidden[:, 0]))
    assert len(kept) == 10
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-4)  # values of about 10, added in another order
    with torch.no_grad():
        assert not torch.allclose(pooled, encoder.eval().pool(units), atol=1e-2)


def test_features_keep_their_grid_while_training():
    config = dataclasses.replace(TINY, patch_dropout=0.5)
    encoder = build(config)
    with torch.no_grad():
        calm = encode(encoder, pictures(config))
        assert torch.equal(encode(encoder.train(), pictures(config)), calm)


# In a dual encoder


def test_a_dual_encoder_projects_the_text_into_the_towers_joint_space():
    text = dataclasses.replace(ClipText.Config.tiny(), activation="gelu")
    system = DualEncoder.Config(media=TINY, text=text, embedding_width=24, projected=("text",)).build()
    assert isinstance(system.media_projection, nn.Identity)
    assert system.text_projection.weight.shape == (24, 64)


def test_towers_that_cannot_be_compared_are_refused():
    text = ClipText.Config.tiny()
    with pytest.raises(ConfigError, match="EvaClipVision is compared at width 24, ClipText at width 64"):
        DualEncoder.Config(media=TINY, text=text)
    with pytest.raises(ConfigError, match="ClipVision is compared at width 64, ClipText at width 24"):
        DualEncoder.Config(media=ClipVision.Config.tiny(), text=text, embedding_width=24, projected=("text",))
