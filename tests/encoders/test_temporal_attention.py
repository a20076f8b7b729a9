"""Attention over time in front of the blocks of every image encoder that has a slot for it."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from weft.core.catalogue import parts
from weft.core.errors import ConfigError, DataError
from weft.core.interfaces import ModalityEncoder
from weft.core.media import MediaFeatures
from weft.encoders.clip import ClipVision
from weft.encoders.video import Video
from weft.layers.temporal_attention import TemporalAttention, frames_of_videos
from weft.layers.temporal_embedding import TemporalEmbedding

NUM_FRAMES = 4
IMAGES = {
    name: cls.Config.tiny()
    for name, cls in parts("encoders").items()
    if issubclass(cls, ModalityEncoder) and cls.Config.modality == "image"
}


def over(image, seed=0):
    torch.manual_seed(seed)
    return Video.Config(image=image, num_frames=NUM_FRAMES, temporal="attention").build().eval()


def attends(image):
    try:
        over(image)
    except ConfigError:
        return False
    return True


ATTENDING = {name: image for name, image in IMAGES.items() if attends(image)}
each_tower = pytest.mark.parametrize("image", ATTENDING.values(), ids=ATTENDING)


def slots(video):
    return [block.before_attention for block in video.image.blocks]


def pixels(video, count, seed=1):
    return torch.randn(count, *video.config.unit_shape, generator=torch.Generator().manual_seed(seed))


def encode(encoder, units, *frames, **tiles):
    """`frames` counts the frames of each video."""
    layouts = tuple(replace(encoder.config.layout(), frames=count, **tiles) for count in frames)
    lengths = torch.tensor([layout.num_units for layout in layouts])
    return encoder(units, torch.arange(len(frames)).repeat_interleave(lengths), layouts).values


def plain(video):
    """Its image encoder as it would be without attention over time."""
    image = deepcopy(video.image)
    bare = video.config.image.build().eval()
    bare.load_state_dict({name: value for name, value in image.state_dict().items() if ".before_attention." not in name})
    return bare


def test_towers_of_blocks_with_slots_attend_and_every_other_says_that_it_cannot():
    assert {"clip_vision", "dinov2", "eva_clip_vision", "qwen_vl_vision", "siglip_vision"} <= set(ATTENDING)
    assert {"resnet", "nfnet", "mixture", "patch_vision"} <= set(IMAGES) - set(ATTENDING)
    for name in set(IMAGES) - set(ATTENDING):
        with pytest.raises(ConfigError, match=r"attention over time stands in the slot 'before_attention'.*; take another"):
            over(IMAGES[name])


def test_without_a_number_of_frames_there_is_no_attention_over_time():
    with pytest.raises(ConfigError, match="say num_frames"):
        Video.Config(temporal="attention")


@each_tower
@torch.no_grad()
def test_with_projection_and_vectors_at_zero_the_tower_is_the_plain_one_bit_for_bit(image):
    video = over(image)
    for slot in slots(video):
        nn.init.zeros_(slot.embedding.table)
        for parameter in slot.attention.output.parameters():
            nn.init.zeros_(parameter)
    units = pixels(video, 6)
    assert torch.equal(encode(video, units, 3, 1, 2), encode(plain(video), units, *[1] * 6))


@each_tower
@torch.no_grad()
def test_a_video_of_one_frame_is_the_picture_bit_for_bit(image):
    video = over(image)
    units = pixels(video, 3)
    assert torch.equal(encode(video, units, 1, 1, 1), encode(plain(video), units, 1, 1, 1))
    with torch.enable_grad():  # where parameters join the graph by nothing
        assert torch.equal(encode(video, units, 1, 1, 1), encode(plain(video), units, 1, 1, 1))


@each_tower
@torch.no_grad()
def test_videos_of_any_lengths_in_one_batch_equal_each_alone(image):
    video, frames = over(image), (4, 1, 2, 6, 4)
    units = pixels(video, sum(frames))
    together = encode(video, units, *frames).split(frames)
    for found, alone, count in zip(together, units.split(frames), frames, strict=True):
        torch.testing.assert_close(found, encode(video, alone, count), rtol=0, atol=1e-5)  # float32, other blocking


@each_tower
@torch.no_grad()
def test_frames_are_told_apart_by_their_vectors_alone(image):
    video = over(image)
    units = pixels(video, 4)
    forwards, backwards = encode(video, units, 4), encode(video, units.flip(0), 4).flip(0)
    assert (forwards - backwards).abs().max() > 1e-4
    for slot in slots(video):
        nn.init.zeros_(slot.embedding.table)
    forwards, backwards = encode(video, units, 4), encode(video, units.flip(0), 4).flip(0)
    torch.testing.assert_close(forwards, backwards, rtol=0, atol=1e-5)  # float32: sums in another order


@each_tower
@torch.no_grad()
def test_a_frame_sees_the_others_and_no_other_video(image):
    video = over(image)
    units = pixels(video, 5)
    changed = units.clone()
    changed[1] += 1
    before, after = encode(video, units, 3, 2), encode(video, changed, 3, 2)
    assert [not torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, True, False, False]


def run(video):
    """The slots that stand before the features: a later block is not run."""
    last = getattr(video.config.image, "feature_layer", -1)
    return slots(video)[: last + 1 or None] if isinstance(last, int) else slots(video)


@each_tower
def test_gradients_reach_every_new_parameter(image):
    video = over(image)
    values = encode(video, pixels(video, NUM_FRAMES + 1), NUM_FRAMES, 1)
    (values * torch.randn(values.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    assert run(video)
    for slot in run(video):
        for name, parameter in slot.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.any() or name.endswith("key.bias"), name  # a softmax does not feel what all keys gain
        assert slot.embedding.table.grad.any(1).all(), "each frame's vector"


@each_tower
def test_in_a_batch_of_pictures_they_join_the_graph_with_nothing(image):
    video = over(image)
    encode(video, pixels(video, 2), 1, 1).sum().backward()
    for slot in run(video):
        assert all(parameter.grad is not None and not parameter.grad.any() for parameter in slot.parameters())


@torch.no_grad()
def test_tiles_of_a_frame_each_see_their_own_place_over_time():
    video = over(ClipVision.Config.tiny())
    units = pixels(video, 6)  # two frames of three tiles
    tiled = encode(video, units, 2, tile_columns=3)
    apart = encode(video, units[[0, 3, 1, 4, 2, 5]], 2, 2, 2)
    torch.testing.assert_close(tiled, apart[[0, 2, 4, 1, 3, 5]], rtol=0, atol=1e-6)  # float32


@torch.no_grad()
def test_what_the_slot_computes_by_hand():
    """One head, frame after frame, at a place: softmax over the frames of products of normed states, added to the state."""
    slot = TemporalAttention(ClipVision.Config(width=8, num_layers=1, num_heads=1, feature_layer=-1).build().blocks[0], 3)
    state = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    layout = (replace(ClipVision.Config.tiny().layout(), frames=3),)
    with frames_of_videos(torch.zeros(3, dtype=torch.long), layout):
        found, _ = slot(state, {}, None)
    for place in range(5):
        told = [state[time, place] + slot.embedding.table[time] for time in range(3)]
        normed = [(x - x.mean()) / (x.var(correction=0) + 1e-5) ** 0.5 for x in told]
        layers = slot.attention
        for time in range(3):
            scores = [layers.query(normed[time]) @ layers.key(other) / 8**0.5 for other in normed]
            shares = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
            seen = sum(share * layers.value(other) for share, other in zip(shares, normed, strict=True))
            torch.testing.assert_close(found[time, place], told[time] + layers.output(seen), rtol=0, atol=1e-5)  # float32


@torch.no_grad()
def test_an_image_encoder_that_is_called_by_itself_sees_pictures():
    video = over(ClipVision.Config.tiny())
    units = pixels(video, 2)
    with pytest.raises(DataError):
        encode(video, units[:, :2], 2)  # two channels: the forward fails half way
    assert torch.equal(encode(video.image, units, 2), encode(plain(video), units, 2))


@pytest.mark.parametrize("num_frames", [1, 3, NUM_FRAMES, 7])
def test_the_vectors_of_all_frames_are_those_that_features_get(num_frames):
    embedding = TemporalEmbedding(NUM_FRAMES, 6, std=1.0)
    layout = (replace(ClipVision.Config.tiny().layout(), frames=num_frames),)
    nothing = MediaFeatures(torch.zeros(num_frames, 1, 6), torch.zeros(num_frames, dtype=torch.long), layout)
    assert torch.equal(embedding.vectors(num_frames), embedding(nothing)[:, 0])


@torch.no_grad()
def test_in_bfloat16_a_film_is_near():
    video = over(ClipVision.Config.tiny())
    units = pixels(video, 4)
    exact = encode(video, units, 4)
    reduced = encode(video.bfloat16(), units, 4)
    assert reduced.dtype == torch.bfloat16
    # 8 bits of mantissa through a few layers: a few percent of the features' size
    assert (reduced.float() - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_under_autocast_a_film_and_a_picture_share_a_batch():
    video = over(ClipVision.Config.tiny())
    with torch.autocast("cpu", torch.bfloat16):
        values = encode(video, pixels(video, 4), 3, 1)
    values.float().square().sum().backward()
    assert values.dtype == torch.bfloat16 and values.isfinite().all()
    assert all(slot.embedding.table.grad.isfinite().all() for slot in run(video))
