"""The Perceiver Resampler: published counts, parity with OpenFlamingo and IDEFICS, and what it is invariant to."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from weft.checkpoints import perceiver as key_maps
from weft.core.errors import DataError
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.data.collate import collate
from weft.data.encoded_sample import EncodedMedium, EncodedSample
from weft.data.images import ImageTransform
from weft.projectors.perceiver import Perceiver

WIDTH, LATENTS = 24, 5
SMALL = Perceiver.Config(num_latents=LATENTS, num_layers=3, num_heads=3, head_width=6)
GRID = MediaLayout(2, 3)


def randomised(config, output_width=WIDTH, seed=0):
    """Norms away from one, biases away from zero: every parameter matters."""
    torch.manual_seed(seed)
    projector = config.build(WIDTH, output_width).eval()
    for parameter in projector.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    return projector


def features_of(*layouts, length=6, seed=1):
    unit_item = torch.tensor([item for item, layout in enumerate(layouts) for _ in range(layout.num_units)])
    values = torch.randn(len(unit_item), length, WIDTH, generator=torch.Generator().manual_seed(seed))
    return MediaFeatures(values, unit_item, layouts)


def tokens_of(projector, features):
    with torch.no_grad():
        tokens = projector(features)
    assert tokens.item.tolist() == [item for item in range(len(features.layout)) for _ in range(LATENTS)]
    return tokens.values.unflatten(0, (-1, LATENTS))


def assert_near(ours, theirs):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * max(1, theirs.abs().max())  # float32, a few layers


def open_flamingo(state, x, heads, place=0):
    """One medium, from the paper's equations and the published key names: x [frames, positions, D] -> [K, D]."""
    frame_embs = state.get("frame_embs")
    if frame_embs is not None:
        x = torch.stack([frame + frame_embs[number] for number, frame in enumerate(x)])
    x = torch.cat(list(x))
    if "media_time_embs" in state:
        x = x + state["media_time_embs"][place]

    def norm(y, name):
        return F.layer_norm(y, y.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    latents = state["latents"]
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("layers."))
    for i in range(depth):
        own = norm(latents, f"layers.{i}.0.norm_latents")
        seen = torch.cat([norm(x, f"layers.{i}.0.norm_media"), own])
        q = (own @ state[f"layers.{i}.0.to_q.weight"].T).chunk(heads, dim=-1)
        k, v = (seen @ state[f"layers.{i}.0.to_kv.weight"].T).chunk(2, dim=-1)
        mixed = []
        for q_head, k_head, v_head in zip(q, k.chunk(heads, dim=-1), v.chunk(heads, dim=-1), strict=True):
            mixed.append(((q_head @ k_head.T) * q_head.shape[-1] ** -0.5).softmax(-1) @ v_head)
        latents = latents + torch.cat(mixed, -1) @ state[f"layers.{i}.0.to_out.weight"].T
        inner = F.gelu(norm(latents, f"layers.{i}.1.0") @ state[f"layers.{i}.1.1.weight"].T)
        latents = latents + inner @ state[f"layers.{i}.1.3.weight"].T
    return norm(latents, "norm")


@pytest.mark.parametrize("num_frames", [None, 4], ids=["no frame embeddings", "frame embeddings"])
@pytest.mark.parametrize("num_media", [None, 2], ids=["no media embeddings", "media embeddings"])
def test_it_is_openflamingos_function_through_its_key_names(num_frames, num_media):
    ours = randomised(dataclasses.replace(SMALL, num_frames=num_frames, num_media=num_media))
    state = key_maps.OPENFLAMINGO.from_weft(ours.state_dict())
    assert state["layers.2.0.to_kv.weight"].shape == (2 * 18, WIDTH)
    features = features_of(dataclasses.replace(GRID, frames=3), GRID, dataclasses.replace(GRID, frames=2))
    places = [1, 0, 0]
    features = dataclasses.replace(features, item_place=torch.tensor(places))
    media = zip(features.values.split([3, 1, 2]), places, strict=True)
    expected = [open_flamingo(state, x, 3, place) for x, place in media]
    again = randomised(ours.config, seed=9)
    assert key_maps.OPENFLAMINGO.load(again, state) == {}
    assert_near(tokens_of(again, features), torch.stack(expected))


@pytest.mark.parametrize("head_norms", [False, True])
def test_it_is_idefics_resampler_through_its_key_names(head_norms):
    transformers = pytest.importorskip("transformers")
    from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

    config = transformers.IdeficsConfig(
        vision_config={"embed_dim": WIDTH}, perceiver_config={"qk_layer_norms_perceiver": head_norms}
    )
    ours = randomised(dataclasses.replace(SMALL, activation="relu", head_norms=head_norms))
    theirs = IdeficsPerceiverResampler(config, WIDTH, depth=3, n_heads=3, head_dim=6, n_latents=LATENTS).eval()
    theirs.load_state_dict(key_maps.IDEFICS.from_weft(ours.state_dict()))
    again = randomised(ours.config, seed=9)
    assert key_maps.IDEFICS.load(again, theirs.state_dict()) == {}
    features = features_of(GRID, GRID)
    with torch.no_grad():
        expected = theirs(features.values)
    assert_near(tokens_of(again, features), expected)


def test_published_parameter_counts():
    sizes = Perceiver.Config.sizes()
    counts = {("openflamingo", 1024): 63_019_008, ("idefics", 1536): 170_025_984}
    for (name, width), count in counts.items():
        with torch.device("meta"):
            assert sum(p.numel() for p in sizes[name].build(width, width).parameters()) == count
        with torch.device("meta"):  # the language model's width, where it differs, costs one linear layer
            wider = sizes[name].build(width, 4096)
        assert sum(p.numel() for p in wider.parameters()) == count + width * 4096 + 4096


def test_the_latents_may_have_a_width_of_their_own():
    with torch.device("meta"):
        projector = Perceiver.Config(width=48, num_latents=LATENTS, num_layers=1).build(WIDTH, 32)
    assert projector.latents.shape == (LATENTS, 48)
    assert (projector.input.weight.shape, projector.output.weight.shape) == ((48, WIDTH), (32, 48))


def test_the_number_of_tokens_does_not_depend_on_size_or_frames():
    projector = randomised(SMALL)
    for layout in (MediaLayout(1, 1), MediaLayout(9, 7), MediaLayout(4, 4, frames=11)):
        features = features_of(layout, layout, length=layout.height * layout.width)
        assert projector.config.num_tokens(layout) == LATENTS
        assert tokens_of(projector, features).shape == (2, LATENTS, WIDTH)


def test_without_a_table_of_frames_the_order_of_features_and_frames_is_not_seen():
    projector = randomised(SMALL)
    features = features_of(dataclasses.replace(GRID, frames=3))
    order = torch.tensor([4, 2, 0, 1, 5, 3])
    mixed = dataclasses.replace(features, values=features.values.flip(0)[:, order])
    assert_near(tokens_of(projector, mixed), tokens_of(projector, features))


def test_with_a_table_the_order_of_frames_is_seen_and_that_of_features_is_not():
    projector = randomised(dataclasses.replace(SMALL, num_frames=3))
    features = features_of(dataclasses.replace(GRID, frames=3))
    plain = tokens_of(projector, features)
    assert_near(tokens_of(projector, dataclasses.replace(features, values=features.values.flip(1))), plain)
    reversed_ = tokens_of(projector, dataclasses.replace(features, values=features.values.flip(0)))
    assert (reversed_ - plain).abs().max() > 1e-2
    with torch.no_grad():
        projector.frame_embedding.table.zero_()
    flat = [tokens_of(projector, dataclasses.replace(features, values=v)) for v in (features.values, features.values.flip(0))]
    assert_near(*flat)


def test_a_sample_with_more_media_than_vectors_is_an_error():
    projector = randomised(dataclasses.replace(SMALL, num_media=2))
    features = dataclasses.replace(features_of(GRID, GRID, GRID), item_place=torch.tensor([0, 1, 2]))
    with pytest.raises(DataError, match="a sample shows 3 media, the Perceiver has vectors for 2; raise num_media"):
        projector(features)


def test_a_batch_says_the_place_of_each_medium_in_its_sample():
    """The same picture at two places is two items, at the same place of two samples it is one."""
    first, second = (EncodedMedium(np.full((1, 2, 2, 3), shade, np.uint8), ImageTransform(size=2), GRID) for shade in (0, 9))

    def sample(*media):
        shown = tuple(dataclasses.replace(medium, spans=((0, at, 1),)) for at, medium in enumerate(media))
        tokens = np.zeros(4, np.int64)
        return EncodedSample(tokens, tokens, tokens, {"image": shown})

    media = collate([[sample(first, second), sample(first)], [sample(second, first)]]).media["image"]
    assert media.item_place.tolist() == [0, 1, 0, 1]
    assert media.spans[:, 0].tolist() == [0, 1, 0, 2, 3]
    assert media.units[:, 0, 0, 0].argsort(stable=True).tolist() == [0, 3, 1, 2]


def test_media_are_read_independently_of_their_neighbours():
    projector = randomised(dataclasses.replace(SMALL, num_frames=2))
    features = features_of(dataclasses.replace(GRID, frames=2), GRID, GRID)
    before = tokens_of(projector, features)
    values = features.values.clone()
    values[2] *= -1.0
    after = tokens_of(projector, dataclasses.replace(features, values=values))
    assert (after[1] - before[1]).abs().max() > 1e-3
    assert_near(after[[0, 2]], before[[0, 2]])


def test_features_that_do_not_exist_are_not_read():
    projector = randomised(SMALL)
    features = features_of(dataclasses.replace(GRID, frames=2), GRID)
    valid = torch.ones(3, 6, dtype=torch.bool)
    valid[1, 3:] = valid[2, 2:] = False
    found = tokens_of(projector, dataclasses.replace(features, valid=valid))
    video, picture = features.values[:2].flatten(0, 1)[:9], features.values[2, :2]
    for row, real in ((0, video), (1, picture)):
        alone = MediaFeatures(real[None], torch.zeros(1, dtype=torch.long), (MediaLayout(1, len(real)),))
        assert_near(found[row], tokens_of(projector, alone)[0])


def test_in_bfloat16_it_is_near():
    projector, features = randomised(SMALL), features_of(dataclasses.replace(GRID, frames=2), GRID)
    exact = tokens_of(projector, features)
    reduced = tokens_of(projector.bfloat16(), dataclasses.replace(features, values=features.values.bfloat16()))
    assert reduced.dtype == torch.bfloat16
    assert (reduced - exact).abs().mean() < 0.05 * exact.abs().mean()  # 8 bits of mantissa through three layers
