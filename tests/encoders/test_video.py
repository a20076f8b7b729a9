"""Videos as frames of any image encoder: temporal embeddings, token counts, and the way from a conversation to the system."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_model import VOCABULARY, WORDS

from weft.core.conversation import Conversation, Media, assistant, user
from weft.core.errors import ConfigError, DataError
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.data.collate import collate
from weft.data.images import ImageTransform
from weft.data.processor import Processor
from weft.data.tokenizers import Tokenizer
from weft.data.video import VideoTransform
from weft.encoders.clip import ClipVision
from weft.encoders.siglip import SiglipVision
from weft.encoders.video import Video
from weft.fusion.token_concatenation import TokenConcatenation
from weft.language_models.decoder import Decoder
from weft.layers.temporal_embedding import TemporalEmbedding
from weft.projectors.linear import Linear
from weft.projectors.mlp import MLP
from weft.projectors.perceiver import Perceiver
from weft.systems.accounting import SampleShape, cost, on_meta
from weft.systems.multimodal_lm import MultimodalLM, Stream

IMAGE = ClipVision.Config.tiny()
SIZE = IMAGE.image_size
GRID = IMAGE.layout()
NUM_FRAMES = 4
CLIP = np.random.default_rng(0).integers(0, 255, (9, SIZE, SIZE, 3), dtype=np.uint8)
TOKENIZER = Tokenizer.train(WORDS * 4, VOCABULARY, ("<pad>", "<s>", "</s>", "<video>"))


def build(config, seed=0):
    torch.manual_seed(seed)
    return config.build().eval()


def encode(encoder, units, *frames):
    """`frames` counts the frames of each video."""
    unit_item = torch.arange(len(frames)).repeat_interleave(torch.tensor(frames))
    with torch.no_grad():
        return encoder(units, unit_item, tuple(replace(GRID, frames=count) for count in frames))


def pixels(count, seed=1):
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("image", [IMAGE, SiglipVision.Config.tiny()], ids=["clip", "siglip"])
def test_frames_are_encoded_alone_as_pictures(image):
    video = build(Video.Config(image=image))
    units = pixels(5)
    features = encode(video, units, 3, 2)
    assert features.unit_item.tolist() == [0, 0, 0, 1, 1]
    assert torch.equal(features.values, encode(video.image, units, 1, 1, 1, 1, 1).values)


def test_a_video_has_the_shapes_of_its_image_encoder_and_a_modality_of_its_own():
    config = Video.Config(image=IMAGE)
    assert (config.modality, IMAGE.modality) == ("video", "image")
    assert (config.layout(), config.output_width, config.unit_shape) == (GRID, IMAGE.output_width, (3, SIZE, SIZE))
    with pytest.raises(ConfigError, match="Video has no pooled output"):
        build(config).pool(pixels(1))


def test_each_frame_gets_the_vector_of_its_time_at_all_places():
    video = build(Video.Config(image=IMAGE, num_frames=NUM_FRAMES))
    units = pixels(7)
    added = encode(video, units, 4, 1, 2).values - encode(video.image, units, 4, 1, 2).values
    expected = video.frame_embedding.table[[0, 1, 2, 3, 0, 0, 1]].detach()
    torch.testing.assert_close(added, expected[:, None].expand_as(added), rtol=0, atol=1e-6)  # a difference of float32


@pytest.mark.parametrize("num_frames", [5, 7, 30])
def test_more_frames_than_the_table_has_stretch_it_linearly(num_frames):
    embedding = TemporalEmbedding(NUM_FRAMES, 6, std=1.0)
    layouts = (MediaLayout(1, 2), MediaLayout(1, 2, frames=num_frames))
    unit_item = torch.tensor([0] + [1] * num_frames)
    with torch.no_grad():
        found = embedding(MediaFeatures(torch.zeros(1 + num_frames, 2, 6), unit_item, layouts))
    table = embedding.table.detach().numpy()
    at = np.linspace(0, NUM_FRAMES - 1, num_frames)
    expected = np.stack([np.interp(at, range(NUM_FRAMES), column) for column in table.T], -1)
    np.testing.assert_allclose(found[1:, 0].numpy(), expected, atol=1e-5)  # float32 places
    assert torch.equal(found[0, 1], embedding.table[0]) and torch.equal(found[:, 0], found[:, 1])


def test_tiles_of_one_frame_share_its_time():
    embedding = TemporalEmbedding(NUM_FRAMES, 6, std=1.0)
    layout = MediaLayout(1, 1, frames=2, tile_columns=3)
    with torch.no_grad():
        found = embedding(MediaFeatures(torch.zeros(6, 1, 6), torch.zeros(6, dtype=torch.long), (layout,)))
    assert torch.equal(found[:, 0], embedding.table[[0, 0, 0, 1, 1, 1]])


def test_without_times_a_resampled_video_does_not_know_the_order_of_its_frames():
    video, units = build(Video.Config(image=IMAGE, num_frames=NUM_FRAMES)), pixels(4)
    resampler = Perceiver.Config(num_latents=3, num_layers=2, num_heads=2, head_width=8).build(IMAGE.output_width, 20).eval()

    def tokens(units):
        with torch.no_grad():
            return resampler(encode(video, units, 4)).values

    torch.nn.init.normal_(video.frame_embedding.table)
    assert (tokens(units) - tokens(units.flip(0))).abs().max() > 1e-2
    torch.nn.init.zeros_(video.frame_embedding.table)
    torch.testing.assert_close(tokens(units), tokens(units.flip(0)), rtol=0, atol=1e-5)  # float32


def test_published_token_counts():
    l14 = ClipVision.Config.sizes()["l-14"]
    plain, with_class_tokens = (
        replace(Video.Config(image=replace(l14, keep_class_token=kept)).layout(), frames=8) for kept in (False, True)
    )
    assert MLP.Config().num_tokens(plain) == 2048
    assert MLP.Config().num_tokens(with_class_tokens) == 2056  # Video-LLaVA: 8 * 257
    assert Perceiver.Config().num_tokens(plain) == 64  # Flamingo


def system(projector, num_frames=NUM_FRAMES):
    torch.manual_seed(0)
    return MultimodalLM.Config(
        language_model=replace(Decoder.Config.tiny(), vocabulary=VOCABULARY, context=512),
        streams={"video": Stream.Config(encoder=Video.Config(image=IMAGE, num_frames=num_frames), projector=projector)},
        fusions=(TokenConcatenation.Config(streams=("video",)),),
    )


def processor(config, num_frames=NUM_FRAMES):
    transform = VideoTransform(frame=ImageTransform(size=SIZE), num_frames=num_frames)
    return Processor.Config(template="vicuna_v1", transforms={"video": transform}).build(TOKENIZER, config)


def asked(*sources):
    return Conversation((user(*(Media(s, "video") for s in sources), "which?"), assistant("red")), id="7", source="set")


@pytest.mark.parametrize(
    ("projector", "per_video", "per_picture"),
    [(Linear.Config(), NUM_FRAMES * GRID.positions, GRID.positions), (Perceiver.Config.tiny(), 4, 4)],
    ids=["tokens of every frame", "resampled"],
)
def test_a_video_and_a_picture_go_from_the_conversation_to_the_language_model(projector, per_video, per_picture):
    config = system(projector)
    batch = collate([processor(config).encode(asked(CLIP, CLIP[0])), processor(config).encode(asked(CLIP[5:]))])
    media = batch.media["video"]
    assert media.units.shape == (NUM_FRAMES + 1 + NUM_FRAMES, 3, SIZE, SIZE)
    assert media.unit_item.tolist() == [0] * NUM_FRAMES + [1] + [2] * NUM_FRAMES
    assert [layout.frames for layout in media.layout] == [NUM_FRAMES, 1, NUM_FRAMES]
    assert media.spans[:, 4].tolist() == [per_video, per_picture, per_video]
    model = config.build().eval()
    with torch.no_grad():
        embedded = model.sequence(batch).embeddings
        stream = model.stream("video")
        frames = torch.stack([ImageTransform(size=SIZE).apply(CLIP[i]) for i in (5, 6, 7, 8)])
        alone = stream.projector(encode(stream.encoder, frames, NUM_FRAMES)).values
        assert model(batch).hidden.isfinite().all()
    _, _, row, start, length = media.spans[2].tolist()
    torch.testing.assert_close(embedded[row, start : start + length], alone, rtol=0, atol=1e-5)  # float32, other blocking


def test_a_videos_cost_is_that_of_all_its_frames():
    config = system(Linear.Config(), num_frames=None)
    transform = processor(config).config.transforms["video"]
    layout = transform.usual_layout(config.layout("video"))
    assert transform.open(CLIP, config.layout("video")).layout == layout

    def flops(frames, text):
        """Of the encoder and projector: the language model's share, which sees as many tokens of text, is left out."""
        media = SampleShape(1, {"video": (frames, 3, SIZE, SIZE)}, {"video": replace(GRID, frames=frames)})
        alone = replace(config, streams={}, fusions=())
        return cost(on_meta(config), media).forward_flops - cost(on_meta(alone), SampleShape(text)).forward_flops

    head = 2 * config.language_model.output_width * VOCABULARY  # the head reads text alone
    one = flops(1, 1 + GRID.positions) + head * GRID.positions
    four = flops(NUM_FRAMES, 1 + NUM_FRAMES * GRID.positions) + head * NUM_FRAMES * GRID.positions
    assert layout.frames == NUM_FRAMES and four == NUM_FRAMES * one


def test_a_bad_video_names_its_sample_and_its_place():
    with pytest.raises(DataError, match="sample set:7, video 2: a video given as a list of pictures holds no picture"):
        processor(system(Linear.Config())).encode(asked(CLIP, []))
