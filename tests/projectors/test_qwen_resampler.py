"""Qwen-VL's resampler: published counts, and an independent reference over the published key names."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from weft.checkpoints.qwen_resampler import QWEN_RESAMPLER
from weft.core.errors import ConfigError
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.projectors.qwen_resampler import QwenResampler, sine_cosine_table

INPUT_WIDTH, WIDTH, HEAD_WIDTH = 20, 24, 8
CONFIG = QwenResampler.Config(grid=3, head_width=HEAD_WIDTH)


def randomised(seed=0, input_width=INPUT_WIDTH):
    """Every parameter matters, and attention is far from uniform."""
    torch.manual_seed(seed)
    projector = CONFIG.build(input_width, WIDTH).eval()
    for parameter in projector.parameters():
        nn.init.normal_(parameter, mean=0.5 * (parameter.dim() == 1), std=0.4)
    return projector


def features_of(*layouts, seed=1, width=INPUT_WIDTH):
    unit_item = torch.tensor([item for item, layout in enumerate(layouts) for _ in range(layout.num_units)])
    length = layouts[0].height * layouts[0].width
    return MediaFeatures(torch.randn(len(unit_item), length, width, generator=torch.manual_seed(seed)), unit_item, layouts)


def tokens_of(projector, features):
    with torch.no_grad():
        return projector(features).values.unflatten(0, (len(features.values), -1))


def assert_near(ours, theirs):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * max(1, theirs.abs().max())  # float32


def bicubic(size, to):
    """The matrix that resizes a line: Keys' kernel with a = -0.75 about pixel centres, the border repeated."""
    matrix = torch.zeros(to, size, dtype=torch.float64)
    for i in range(to):
        centre = (i + 0.5) * size / to - 0.5
        for j in range(math.floor(centre) - 1, math.floor(centre) + 3):
            d = abs(centre - j)
            weight = 1.25 * d**3 - 2.25 * d**2 + 1 if d <= 1 else -0.75 * d**3 + 3.75 * d**2 - 6 * d + 3
            matrix[i, min(max(j, 0), size - 1)] += weight
    return matrix


def reference(state, x, height, width):
    """One unit: x [height * width, C] -> [queries, D], with PyTorch's own multi-head attention."""
    size = state["ln_post.weight"].shape
    attention = nn.MultiheadAttention(size[0], size[0] // HEAD_WIDTH)
    attention.load_state_dict({k.removeprefix("attn_pool.attn."): v for k, v in state.items() if ".attn." in k})

    def norm(y, name):
        return nn.functional.layer_norm(y, size, state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    table = state["attn_pool.pos_embed"]
    side = math.isqrt(len(table))
    rows, columns = bicubic(side, height), bicubic(side, width)
    resized = torch.einsum("hi,wj,ijd->hwd", rows, columns, table.double().view(side, side, -1)).float().flatten(0, 1)
    x = norm(x @ state["attn_pool.kv_proj.weight"].T, "attn_pool.ln_kv")
    query = norm(state["attn_pool.query"], "attn_pool.ln_q") + table
    with torch.no_grad():
        mixed, _ = attention(query, x + resized, x)
    return norm(mixed, "ln_post") @ state["proj"]


@pytest.mark.parametrize("grids", [[(3, 3)], [(6, 6)], [(2, 6), (4, 3), (1, 12)]], ids=["own grid", "finer", "mixed"])
def test_it_is_the_published_function_through_its_key_names(grids):
    state = QWEN_RESAMPLER.from_weft(randomised().state_dict())
    ours = randomised(seed=9)
    assert QWEN_RESAMPLER.load(ours, state) == {}
    features = features_of(*(MediaLayout(*grid) for grid in grids))
    expected = [reference(state, x, *grid) for x, grid in zip(features.values, grids, strict=True)]
    assert_near(tokens_of(ours, features), torch.stack(expected))


def test_published_parameter_counts():
    with torch.device("meta"):
        projector = QwenResampler.Config().build(1664, 4096)
    assert sum(p.numel() for p in projector.resampler.parameters()) == 75_005_952
    assert projector.position_table.numel() == 76_054_528 - 75_005_952, "the fixed table, counted apart"
    assert not projector.position_table.requires_grad
    total = sum(p.numel() for p in projector.parameters()) + projector.position_table.numel()
    assert total == 92_839_936


@pytest.mark.parametrize("side", [16, 32])
def test_any_resolution_becomes_256_tokens(side):
    config = QwenResampler.Config()
    with torch.device("meta"):
        projector = config.build(1664, 4096)
        features = MediaFeatures(torch.empty(2, side * side, 1664), torch.arange(2), (MediaLayout(side, side),) * 2)
        assert projector(features).values.shape == (2 * 256, 4096)
    assert config.num_tokens(MediaLayout(side, side)) == 256
    assert config.num_tokens(MediaLayout(side, side, frames=3)) == 3 * 256


def test_the_table_says_column_then_row_each_as_sines_then_cosines():
    side, width = 5, 12
    table = sine_cosine_table(side, width)
    for row in range(side):
        for column in range(side):
            expected = []
            for place in (column, row):
                angles = [place / 10_000 ** (k / (width / 4)) for k in range(width // 4)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            torch.testing.assert_close(table[row * side + column], torch.tensor(expected), rtol=0, atol=1e-6)
    assert table[0].tolist() == [0, 0, 0, 1, 1, 1] * 2
    with pytest.raises(ConfigError, match="a width that 4 divides, got 10"):
        sine_cosine_table(2, 10)


def test_features_may_be_shuffled_with_their_places_and_not_without():
    projector = randomised()
    features = features_of(MediaLayout(4, 4))
    order = torch.randperm(16, generator=torch.manual_seed(2))
    places = projector.positions(features)
    with torch.no_grad():
        read = projector.resampler(features.values, None, projector.position_table, places)
        moved = projector.resampler(features.values[:, order], None, projector.position_table, places[:, order])
        torn = projector.resampler(features.values[:, order], None, projector.position_table, places)
    assert_near(moved, read)
    assert (torn - read).abs().max() > 1e-2


def test_features_that_do_not_exist_are_not_read():
    projector, features = randomised(), features_of(MediaLayout(4, 4), MediaLayout(4, 4))
    valid = torch.ones(2, 16, dtype=torch.bool)
    valid[1, 7:] = False
    spoiled = features.values.masked_fill(~valid[..., None], 100.0)
    found = tokens_of(projector, dataclasses.replace(features, valid=valid))
    assert_near(tokens_of(projector, dataclasses.replace(features, values=spoiled, valid=valid)), found)


def test_features_of_the_right_width_need_no_map():
    assert isinstance(randomised(input_width=WIDTH).resampler.input, nn.Identity)


def test_a_width_that_makes_no_heads_is_an_error():
    with pytest.raises(ConfigError, match="width 20 does not split into heads of 8"):
        CONFIG.build(INPUT_WIDTH, 20)


def test_in_bfloat16_it_is_near():
    projector, features = randomised(), features_of(MediaLayout(4, 4))
    exact = tokens_of(projector, features)
    reduced = tokens_of(projector.bfloat16(), dataclasses.replace(features, values=features.values.bfloat16()))
    assert reduced.dtype == torch.bfloat16
    assert (reduced - exact).abs().mean() < 0.05 * exact.abs().mean()  # 8 bits of mantissa
