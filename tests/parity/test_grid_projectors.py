"""Projectors on grids against `transformers` where it has them, else against the papers' equations under the published names.

The references below know the published keys only; weights reach Weft through the strict key maps.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from reference_models import assert_close, randomise

from weft.checkpoints import honeybee, internvl_projector, mobilevlm, xcomposer2_4khd
from weft.core.errors import CheckpointError
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.layers.deformable_attention import DeformableBlock
from weft.projectors.c_abstractor import CAbstractor
from weft.projectors.d_abstractor import DAbstractor
from weft.projectors.global_local_tiles import GlobalLocalTiles
from weft.projectors.ldp import LDP
from weft.projectors.ldpv2 import LDPv2
from weft.projectors.mlp import MLP
from weft.projectors.mlp_downsample import MLPDownsample
from weft.projectors.pixel_shuffle import PixelShuffle
from weft.projectors.tiles import Tiles

WIDTH, OUT = 16, 24
C_ABSTRACTOR = CAbstractor.Config(grid_side=7, side=3, depth=2, norm_eps=1e-4)
D_ABSTRACTOR = DAbstractor.Config(grid_side=5, side=3, num_layers=2, num_heads=2, num_points=3, feed_forward_width=20)


def published(config, key_map, output_width=OUT, input_width=WIDTH):
    """A projector with random weights, and those weights under their published names."""
    torch.manual_seed(0)
    projector = randomise(config.build(input_width, output_width))
    state = key_map.from_weft(projector.state_dict())
    fresh = config.build(input_width, output_width).eval()
    assert key_map.load(fresh, state) == {}
    assert all(torch.equal(value, projector.state_dict()[key]) for key, value in fresh.state_dict().items())
    lost = sorted(state)[len(state) // 2]
    with pytest.raises(CheckpointError, match="1 missing"):
        key_map.load(fresh, {key: value for key, value in state.items() if key != lost})
    with pytest.raises(CheckpointError, match="1 unknown"):
        key_map.load(fresh, state | {"abstractor.stranger": torch.ones(1)})
    return fresh, state


def features(height, width, count=2, channels=WIDTH):
    values = torch.randn(count, height * width, channels, generator=torch.Generator().manual_seed(1))
    return MediaFeatures(values, torch.arange(count), (MediaLayout(height, width),) * count)


def tokens_of(projector, inputs):
    with torch.no_grad():
        return projector(inputs).values.unflatten(0, (len(inputs.layout), -1))


def norm(grid, state, name, eps=1e-5):
    """Layer norm over the channels of one picture [C, H, W]."""
    centred = grid - grid.mean(0)
    scaled = centred / (centred.square().mean(0) + eps).sqrt()
    return scaled * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]


def depthwise(grid, weight, stride=1):
    """A 3 x 3 convolution of every channel by itself, place by place, with zeros outside: [C, H, W]."""
    channels, height, width = grid.shape
    framed = torch.zeros(channels, height + 2, width + 2)
    framed[:, 1:-1, 1:-1] = grid
    rows = []
    for y in range(0, height, stride):
        row = [(framed[:, y : y + 3, x : x + 3] * weight[:, 0]).sum((1, 2)) for x in range(0, width, stride)]
        rows.append(torch.stack(row, 1))
    return torch.stack(rows, 1)


def pointwise(grid, weight):
    return torch.einsum("oc,chw->ohw", weight[:, :, 0, 0], grid)


def gate(grid, state, name, activation, squash):
    """Squeeze-excite: one factor a channel."""
    mean = grid.mean((1, 2))
    hidden = activation(state[f"{name}.fc1.weight"][:, :, 0, 0] @ mean + state[f"{name}.fc1.bias"])
    return squash(state[f"{name}.fc2.weight"][:, :, 0, 0] @ hidden + state[f"{name}.fc2.bias"])[:, None, None]


def pool(grid, side):
    """The mean over each cell, cells of an odd grid sharing their borders."""
    _, height, width = grid.shape
    cells = [
        grid[:, i * height // side : math.ceil((i + 1) * height / side), j * width // side : math.ceil((j + 1) * width / side)]
        for i in range(side)
        for j in range(side)
    ]
    return torch.stack([cell.mean((1, 2)) for cell in cells], 1).view(-1, side, side)


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def silu(x):
    return x / (1 + torch.exp(-x))


def reference_c_abstractor(state, x, config):
    """One picture [L, C] -> [M, D]."""
    state = {key.removeprefix("abstractor."): value for key, value in state.items()}
    grid = (x + state["pos_emb"][0]).T.reshape(-1, config.grid_side, config.grid_side)
    for stage in ("net.0", "net.2"):
        if stage == "net.2":
            grid = pool(grid, config.side)
        for number in range(config.depth):
            block = f"{stage}.b{number + 1}"
            h = silu(norm(pointwise(grid, state[f"{block}.conv1.conv.weight"]), state, f"{block}.conv1.bn", config.norm_eps))
            h = silu(norm(depthwise(h, state[f"{block}.conv2.conv.weight"]), state, f"{block}.conv2.bn", config.norm_eps))
            h = h * gate(h, state, f"{block}.se", silu, torch.sigmoid)
            h = norm(pointwise(h, state[f"{block}.conv3.conv.weight"]), state, f"{block}.conv3.bn", config.norm_eps)
            grid = silu(grid + h)
    return linear(silu(linear(grid.flatten(1).T, state, "readout.0")), state, "readout.2")


@torch.no_grad()
def test_c_abstractor_equals_its_equations_on_an_odd_grid():
    projector, state = published(C_ABSTRACTOR, honeybee.c_abstractor(C_ABSTRACTOR))
    inputs = features(7, 7)
    expected = torch.stack([reference_c_abstractor(state, x, C_ABSTRACTOR) for x in inputs.values])
    assert_close(tokens_of(projector, inputs), expected)


@pytest.mark.parametrize(
    ("config", "table", "position"),
    [(C_ABSTRACTOR, honeybee.c_abstractor, "pos_emb"), (D_ABSTRACTOR, honeybee.d_abstractor, "v_pos_emb")],
)
def test_older_files_have_a_position_for_the_class_token_in_front(config, table, position):
    projector, state = published(config, table(config))
    rows = config.grid_side**2
    assert state[f"abstractor.{position}"].shape == (1, rows, WIDTH)
    older = state | {f"abstractor.{position}": F.pad(state[f"abstractor.{position}"], (0, 0, 1, 0), value=7.0)}
    with pytest.raises(CheckpointError, match=rf"expected positions \(1, {rows}, width\), got \(1, {rows + 1}, {WIDTH}\)"):
        table(config).load(projector, older)
    again = config.build(WIDTH, OUT)
    table(config, class_position=True).load(again, older)
    assert torch.equal(again.position, projector.position)
    assert table(config, class_position=True).from_weft(again.state_dict())[f"abstractor.{position}"].shape == (
        1, rows + 1, WIDTH
    )  # fmt: skip


def test_honeybees_files_have_these_keys():
    _, state = published(C_ABSTRACTOR, honeybee.c_abstractor(C_ABSTRACTOR))
    blocks = [f"abstractor.net.{stage}.b{number}" for stage in (0, 2) for number in (1, 2)]
    inside = [f"{layer}.{kind}" for layer in ("conv1", "conv2", "conv3") for kind in ("conv.weight", "bn.weight", "bn.bias")]
    inside += [f"se.{layer}.{kind}" for layer in ("fc1", "fc2") for kind in ("weight", "bias")]
    readout = [f"abstractor.readout.{number}.{kind}" for number in (0, 2) for kind in ("weight", "bias")]
    assert set(state) == {"abstractor.pos_emb", *readout, *(f"{block}.{name}" for block in blocks for name in inside)}
    assert state["abstractor.net.0.b1.se.fc1.weight"].shape == (WIDTH // 4, WIDTH, 1, 1)
    _, state = published(D_ABSTRACTOR, honeybee.d_abstractor(D_ABSTRACTOR))
    assert state["abstractor.reference_points"].shape == (1, 9, 2)
    assert {key for key in state if "layers" not in key} == {
        "abstractor.v_pos_emb", "abstractor.query_position_embeddings.weight", "abstractor.reference_points",
        "abstractor.output_proj.weight", "abstractor.output_proj.bias",
    }  # fmt: skip


def read_at(grid, x, y):
    """The bilinear value of [C, H, W] at a place in features, (0, 0) the middle of the first; zero outside."""
    total = torch.zeros(len(grid))
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < grid.shape[1] and 0 <= column < grid.shape[2]:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * grid[:, row, column]
    return total


def layer_norm(x, state, name):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def reference_d_abstractor(state, x, config):
    """One picture [L, C] -> [M, D], head by head and point by point."""
    state = {key.removeprefix("abstractor."): value for key, value in state.items()}
    side, heads, points, width = config.grid_side, config.num_heads, config.num_points, x.shape[-1]
    each = width // heads
    x = x + state["v_pos_emb"][0]
    position = pool(x.T.reshape(width, side, side), config.side).flatten(1).T
    hidden = state["query_position_embeddings.weight"]
    for number in range(config.num_layers):
        layer = {key.removeprefix(f"layers.{number}."): value for key, value in state.items()}
        query, key = (linear(hidden + position, layer, f"self_attn.{name}_proj") for name in "qk")
        value = linear(hidden, layer, "self_attn.v_proj")
        mixed = []
        for head in range(heads):
            part = slice(head * each, (head + 1) * each)
            scores = query[:, part] @ key[:, part].T / math.sqrt(each)
            mixed.append(torch.softmax(scores, -1) @ value[:, part])
        hidden = layer_norm(hidden + linear(torch.cat(mixed, -1), layer, "self_attn.out_proj"), layer, "self_attn_layer_norm")
        asking = hidden + position
        offsets = linear(asking, layer, "encoder_attn.sampling_offsets").view(-1, heads, points, 2)
        weights = linear(asking, layer, "encoder_attn.attention_weights").view(-1, heads, points).softmax(-1)
        grid = linear(x, layer, "encoder_attn.value_proj").T.reshape(width, side, side)
        read = torch.zeros_like(hidden)
        for m, (px, py) in enumerate(state["reference_points"][0].tolist()):
            for head in range(heads):
                part = slice(head * each, (head + 1) * each)
                for point in range(points):
                    dx, dy = offsets[m, head, point].tolist()
                    found = read_at(grid[part], px * side + dx - 0.5, py * side + dy - 0.5)
                    read[m, part] += weights[m, head, point] * found
        hidden = layer_norm(hidden + linear(read, layer, "encoder_attn.output_proj"), layer, "encoder_attn_layer_norm")
        wide = linear(hidden, layer, "fc1").clamp(min=0)
        hidden = layer_norm(hidden + linear(wide, layer, "fc2"), layer, "final_layer_norm")
    return linear(hidden, state, "output_proj")


@torch.no_grad()
def test_d_abstractor_equals_its_equations():
    projector, state = published(D_ABSTRACTOR, honeybee.d_abstractor(D_ABSTRACTOR))
    inputs = features(5, 5)
    expected = torch.stack([reference_d_abstractor(state, x, D_ABSTRACTOR) for x in inputs.values])
    assert_close(tokens_of(projector, inputs), expected)


@pytest.mark.parametrize("spelling", ["version 4", "version 5"])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 5)])
@torch.no_grad()
def test_a_deformable_block_equals_the_decoder_layer_of_deformable_detr(spelling, height, width):
    transformers = pytest.importorskip("transformers")
    from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrDecoderLayer

    settings = transformers.DeformableDetrConfig(
        d_model=WIDTH, decoder_attention_heads=2, decoder_n_points=3, num_feature_levels=1, decoder_ffn_dim=20,
        disable_custom_kernels=True, attn_implementation="eager",
    )  # fmt: skip
    theirs = randomise(DeformableDetrDecoderLayer(settings))
    state = dict(theirs.state_dict())
    if spelling == "version 4":
        older = {"self_attn.o_proj": "self_attn.out_proj", "mlp.fc": "fc"}
        for new, old in older.items():
            state = {key.replace(new, old): value for key, value in state.items()}
    ours = DeformableBlock(WIDTH, num_heads=2, num_points=3, feed_forward_width=20, dropout=0.1).eval()
    honeybee.DECODER_LAYER.load(ours, state)
    assert set(honeybee.DECODER_LAYER.from_weft(ours.state_dict())) == {
        key.replace("self_attn.o_proj", "self_attn.out_proj").replace("mlp.fc", "fc") for key in state
    }
    draw = torch.Generator().manual_seed(2)
    queries, position = torch.randn(2, 2, 6, WIDTH, generator=draw)
    points = torch.rand(2, 6, 2, generator=draw)
    grid = torch.randn(2, WIDTH, height, width, generator=draw)
    expected = theirs(
        queries,
        object_queries_position_embeddings=position,
        reference_points=points[:, :, None],
        spatial_shapes=torch.tensor([[height, width]]),
        spatial_shapes_list=[(height, width)],
        level_start_index=torch.tensor([0]),
        encoder_hidden_states=grid.flatten(2).transpose(1, 2),
    )
    expected = expected[0] if isinstance(expected, tuple) else expected
    assert_close(ours(queries, position, points, grid), expected)


def reference_ldp(state, x, height, width):
    state = {key.removeprefix("mm_projector.model."): value for key, value in state.items()}
    hidden = linear(F.gelu(linear(x, state, "mlp.1")), state, "mlp.3")
    grid = hidden.T.reshape(-1, height, width)
    for number in (1, 2):
        block = f"mb_block.{number}.block"
        h = norm(depthwise(grid, state[f"{block}.0.0.weight"], stride=number), state, f"{block}.0.1")
        h = h * (h + 3).clamp(0, 6) / 6
        h = h * gate(h, state, f"{block}.1", lambda x: x.clamp(min=0), lambda x: (x + 3).clamp(0, 6) / 6)
        h = norm(pointwise(h, state[f"{block}.2.0.weight"]), state, f"{block}.2.1")
        grid = grid + h if number == 1 else h
    return grid.flatten(1).T


@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 5), (3, 6)])
@torch.no_grad()
def test_ldp_equals_its_equations(height, width):
    projector, state = published(LDP.Config(), mobilevlm.LDP)
    inputs = features(height, width)
    expected = torch.stack([reference_ldp(state, x, height, width) for x in inputs.values])
    assert expected.shape[1] == LDP.Config().num_tokens(inputs.layout[0])
    assert_close(tokens_of(projector, inputs), expected)


def reference_ldpv2(state, x, height, width, side):
    state = {key.removeprefix("mm_projector."): value for key, value in state.items()}
    hidden = linear(F.gelu(linear(x, state, "mlp.mlp.0")), state, "mlp.mlp.2")
    grid = pool(hidden.T.reshape(-1, height, width), side)
    grid = grid + depthwise(grid, state["peg.peg.0.weight"]) + state["peg.peg.0.bias"][:, None, None]
    return grid.flatten(1).T


@pytest.mark.parametrize(("height", "width"), [(6, 6), (7, 7), (3, 5)])
@torch.no_grad()
def test_ldpv2_equals_its_equations(height, width):
    projector, state = published(LDPv2.Config(side=3), mobilevlm.LDPV2)
    inputs = features(height, width)
    expected = torch.stack([reference_ldpv2(state, x, height, width, 3) for x in inputs.values])
    assert_close(tokens_of(projector, inputs), expected)


def test_mobilevlms_files_have_these_keys():
    _, state = published(LDP.Config(), mobilevlm.LDP)
    blocks = [f"mm_projector.model.mb_block.{number}.block" for number in (1, 2)]
    inside = ["0.0.weight", "0.1.weight", "0.1.bias", "2.0.weight", "2.1.weight", "2.1.bias"]
    inside += [f"1.{layer}.{kind}" for layer in ("fc1", "fc2") for kind in ("weight", "bias")]
    linears = [f"mm_projector.model.mlp.{number}.{kind}" for number in (1, 3) for kind in ("weight", "bias")]
    assert set(state) == {*linears, *(f"{block}.{name}" for block in blocks for name in inside)}
    whole = {f"model.{key}": value for key, value in state.items()}  # as they stand in the file of the whole model
    assert mobilevlm.LDP.load(LDP.Config().build(WIDTH, OUT), whole) == {}


@pytest.mark.parametrize("spelling", ["model.multi_modal_projector.", "multi_modal_projector.", "mlp1."])
@torch.no_grad()
def test_pixel_shuffle_equals_internvl(spelling):
    transformers = pytest.importorskip("transformers")
    from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector

    settings = transformers.InternVLConfig(
        vision_config={"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
        text_config={"model_type": "llama", "hidden_size": OUT, "num_hidden_layers": 1, "num_attention_heads": 2},
    )
    theirs = randomise(InternVLMultiModalProjector(settings))
    first = {"layer_norm": "0", "linear_1": "1", "linear_2": "3"}
    state = {}
    for key, value in theirs.state_dict().items():
        name, _, leaf = key.partition(".")
        state[f"{spelling}{first[name] if spelling == 'mlp1.' else name}.{leaf}"] = value
    inputs = features(6, 6)
    shuffle = transformers.models.internvl.modeling_internvl.InternVLModel.pixel_shuffle
    merged = shuffle(None, inputs.values.view(2, 6, 6, WIDTH), 0.5)
    expected = theirs(merged.flatten(1, 2))
    projector = PixelShuffle.Config().build(WIDTH, OUT).eval()
    internvl_projector.INTERNVL.load(projector, state)
    assert_close(tokens_of(projector, inputs), expected)
    # the first version of the published code leaves rows and columns exchanged
    first_version = PixelShuffle.Config(order="columns").build(WIDTH, OUT).eval()
    internvl_projector.INTERNVL.load(first_version, state)
    assert_close(tokens_of(first_version, inputs), theirs(merged.transpose(1, 2).flatten(1, 2)))
    assert set(internvl_projector.INTERNVL.from_weft(projector.state_dict())) == {
        f"multi_modal_projector.{key}" for key in theirs.state_dict()
    }


def reference_vila(state, x, height, width, rows_first):
    tokens = {}
    for i in range(0, height, 2):
        for j in range(0, width, 2):
            inside = [(i + a, j + b) for a in (0, 1) for b in (0, 1)]
            block = [x[r * width + c] if r < height and c < width else torch.zeros(x.shape[-1]) for r, c in inside]
            h = layer_norm(torch.cat(block), state, "layers.1")
            tokens[(i, j) if rows_first else (j, i)] = linear(F.gelu(linear(h, state, "layers.2")), state, "layers.4")
    return torch.stack([tokens[place] for place in sorted(tokens)])


@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 5), (3, 4)])
@pytest.mark.parametrize("order", ["columns", "rows"])
@torch.no_grad()
def test_mlp_downsample_equals_its_equations(height, width, order):
    projector, state = published(MLPDownsample.Config(order=order), internvl_projector.VILA)
    inputs = features(height, width)
    expected = torch.stack([reference_vila(state, x, height, width, order == "rows") for x in inputs.values])
    assert_close(tokens_of(projector, inputs), expected)


def tiled(rows, columns, side, channels, picture_size=(40, 30), thumbnail="first"):
    layout = MediaLayout(side, side, tile_rows=rows, tile_columns=columns, thumbnail=thumbnail, picture_size=picture_size)
    values = torch.randn(layout.num_units, side * side, channels, generator=torch.Generator().manual_seed(3))
    return MediaFeatures(values, torch.zeros(layout.num_units, dtype=torch.long), (layout,))


def reference_xcomposer(state, units, rows, columns, side):
    """Thumbnail first: every 2 x 2 block of the map side by side, a newline behind each row, the separator between the maps."""

    def lines(block_rows, block_columns, at):
        out = []
        for i in range(block_rows):
            out += [torch.cat([at(2 * i + a, 2 * j + b) for a in (0, 1) for b in (0, 1)]) for j in range(block_columns)]
            out.append(state["plora_sub_GN"][0, 0, 0])
        return out

    half = side // 2
    whole = lines(half, half, lambda y, x: units[0][y * side + x])
    local = lines(
        half * rows,
        half * columns,
        lambda y, x: units[1 + (y // side) * columns + x // side][(y % side) * side + x % side],
    )
    merged = torch.stack([*whole, state["plora_glb_GN"][0, 0], *local])
    return linear(F.gelu(linear(merged, state, "vision_proj.0")), state, "vision_proj.2")


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 3), (3, 1)])
@torch.no_grad()
def test_global_local_tiles_equal_xcomposer2_4khd(rows, columns):
    projector, state = published(GlobalLocalTiles.Config(), xcomposer2_4khd.XCOMPOSER2_4KHD)
    assert state["plora_sub_GN"].shape == (1, 1, 1, 4 * WIDTH) and state["plora_glb_GN"].shape == (1, 1, 4 * WIDTH)
    inputs = tiled(rows, columns, 4, WIDTH)
    expected = reference_xcomposer(state, inputs.values, rows, columns, 4)
    assert_close(tokens_of(projector, inputs)[0], expected)


@pytest.mark.parametrize(
    ("grid", "picture_size"),
    [
        ((2, 2), (40, 30)), ((2, 2), (30, 40)), ((1, 2), (28, 28)), ((1, 3), (100, 30)), ((3, 1), (30, 100)),
        ((2, 2), (192, 108)), ((1, 3), (200, 50)), ((2, 2), (57, 56)),
    ],
)  # fmt: skip
@torch.no_grad()
def test_tiles_equal_the_merge_of_llava_next(grid, picture_size):
    transformers = pytest.importorskip("transformers")
    from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

    side = 6
    pinpoints = [[84 * rows, 84 * columns] for rows, columns in [grid]]
    settings = transformers.LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": 84, "patch_size": 14},
        text_config={"model_type": "llama"}, image_grid_pinpoints=pinpoints,
    )  # fmt: skip
    model = object.__new__(LlavaNextModel)  # merging reads the config alone
    torch.nn.Module.__init__(model)
    model.config = settings
    inputs = tiled(*grid, side, WIDTH, picture_size)
    projector = randomise(Tiles.Config(inner=MLP.Config()).build(WIDTH, OUT))
    inside = projector.inner.layers[1](F.gelu(projector.inner.layers[0](inputs.values)))
    sizes = torch.tensor([picture_size[::-1]])
    merged, counts = model.pack_image_features([inside], sizes, "default", image_newline=projector.newline)
    assert counts.tolist() == [projector.config.num_tokens(inputs.layout[0])]
    assert_close(tokens_of(projector, inputs)[0], merged[0])
    alone = MediaFeatures(inputs.values[:1], torch.zeros(1, dtype=torch.long), (MediaLayout(side, side),))
    merged, _ = model.pack_image_features([inside[:1]], sizes, "default", image_newline=projector.newline)
    assert_close(tokens_of(projector, alone)[0], merged[0])


@pytest.mark.parametrize(
    ("config", "input_width", "output_width", "parameters"),
    [
        (CAbstractor.Config(grid_side=16), 1024, 4096, 37_070_336),
        (CAbstractor.Config(grid_side=24), 1024, 4096, 37_398_016),
        (DAbstractor.Config(grid_side=16), 1024, 4096, 55_616_352),
        (LDP.Config(), 1024, 2048, 18_936_832),
        (LDP.Config(), 1024, 2560, 28_913_920),
        (LDP.Config(), 1024, 4096, 71_428_096),
        (LDPv2.Config(), 1024, 2048, 6_316_032),
        (LDPv2.Config(), 1024, 2560, 9_205_760),
        (LDPv2.Config(), 1024, 4096, 21_020_672),
        (PixelShuffle.Config(), 3200, 6144, 116_429_824),
        (PixelShuffle.Config(), 1024, 4096, 33_570_816),
        (PixelShuffle.Config(), 1024, 2048, 12_595_200),
        (PixelShuffle.Config(), 1024, 896, 4_482_816),
        (GlobalLocalTiles.Config(), 1024, 4096, 33_562_624 + 2 * 4096),
        (Tiles.Config(), 1024, 4096, 20_979_712 + 4096),
    ],
)
def test_published_sizes_have_the_published_parameters(config, input_width, output_width, parameters):
    with torch.device("meta"):
        projector = config.build(input_width, output_width)
    assert sum(p.numel() for p in projector.parameters()) == parameters


def test_the_stages_of_the_abstractors_have_their_published_parameters():
    with torch.device("meta"):
        stage = CAbstractor.Config().build(1024, 4096).before_pooling
        block = DAbstractor.Config().build(1024, 4096).blocks[0]
    assert sum(p.numel() for p in stage.parameters()) == 7_914_240
    assert sum(p.numel() for p in block.parameters()) == 8_501_344


@pytest.mark.parametrize(
    ("config", "layout", "tokens"),
    [
        (CAbstractor.Config(grid_side=16), MediaLayout(16, 16), 144),
        (CAbstractor.Config(grid_side=24, side=16), MediaLayout(24, 24), 256),
        (DAbstractor.Config(grid_side=16), MediaLayout(16, 16), 144),
        (LDP.Config(), MediaLayout(24, 24), 144),
        (LDPv2.Config(), MediaLayout(24, 24), 144),
        (PixelShuffle.Config(), MediaLayout(32, 32), 256),
        (MLPDownsample.Config(), MediaLayout(27, 27), 196),
    ],
)
def test_published_grids_have_the_published_tokens(config, layout, tokens):
    assert config.num_tokens(layout) == tokens
