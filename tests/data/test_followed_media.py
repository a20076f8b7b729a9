"""A stream may see the media of another: the conversation names them once."""

from dataclasses import replace

import pytest
import torch
from tiny_model import picture, question, tiny_system, tokenizer

from weft.core.conversation import Conversation, Media, Region, Text, assistant, user
from weft.core.errors import ConfigError, DataError
from weft.data.collate import collate
from weft.data.followed_media import in_every_stream
from weft.data.images import ImageTransform
from weft.data.processor import Processor
from weft.fusion.cross_attention import CrossAttention
from weft.fusion.token_concatenation import TokenConcatenation
from weft.projectors.linear import Linear


def followers(stream):
    return ("close", "far") if stream == "image" else ()


def test_each_medium_stands_once_more_and_regions_name_what_they_named():
    first, second, sound = Media("a.png"), Media("b.png"), Media("c.wav", "audio")
    asked = user(first, "and", sound, second, Region((0.1, 0.2), media=2), Region((0.1, 0.2), media=1))
    shown = in_every_stream(Conversation((asked, assistant("yes"))), followers)
    assert [medium.stream for medium in shown.media()] == ["image", "close", "far", "audio", "image", "close", "far"]
    media, named = list(shown.media()), [part.media for part in shown.messages[0].parts if isinstance(part, Region)]
    assert [media[index] for index in named] == [second, sound]
    assert [part for part in shown.messages[0].parts if isinstance(part, Text)] == [Text("and")]
    assert shown.messages[1] == assistant("yes")


@pytest.mark.parametrize("named", [1, 7, -1])
def test_a_region_of_no_medium_still_names_none(named):
    shown = in_every_stream(Conversation((user(Media("a.png"), Region((0.1, 0.2), media=named)),)), followers)
    assert shown.messages[0].parts[-1].media not in range(3)


def test_where_no_stream_follows_the_conversation_is_the_same():
    conversation = Conversation((user(Media("c.wav", "audio"), "what?"),))
    assert in_every_stream(conversation, followers) is conversation


def both():
    """A picture among the words and, through the same tower and another projector, beside them."""
    one = tiny_system().config
    image = one.streams["image"]
    streams = {"beside": replace(image, projector=Linear.Config(), source="image"), "image": image}
    fusions = (TokenConcatenation.Config(), CrossAttention.Config(streams=("beside",)))
    return replace(one, streams=streams, fusions=fusions)


def test_one_picture_reaches_both_streams_through_one_tower():
    system = both().build().eval()
    transform = ImageTransform(size=32)
    processor = Processor.Config(transforms={"image": transform, "beside": transform}).build(tokenizer(), system.config)
    batch = collate([processor.encode(question(picture(0), "which colour is it?"), reply=True)])
    (among,), (tag,) = (batch.media[name].spans.tolist() for name in ("image", "beside"))
    assert tag[3] >= among[3] + among[4] and tag[4] == 1
    assert batch.main.visible["beside"][0, tag[3] - 1].tolist() == [0, -1], "what stands before the tag does not see it"
    with torch.no_grad():
        features = system.encode(batch)
        assert torch.equal(features["image"].values, features["beside"].values)
        assert system(batch).logits().isfinite().all()
    names = [name for name in system.state_dict() if ".encoder." in name]
    assert names and all(name.startswith("streams.image.") for name in names), "one tower is saved once"


def test_a_tower_of_its_own_where_the_two_differ():
    config = both()
    coarse = replace(config.streams["beside"], encoder=replace(config.streams["image"].encoder, patch_size=16))
    system = replace(config, streams={**config.streams, "beside": coarse}).build()
    assert system.stream("beside").encoder is not system.stream("image").encoder
    assert any(name.startswith("streams.beside.encoder.") for name in system.state_dict())


@pytest.mark.parametrize("source", ["pictures", "beside"])
def test_a_source_that_has_no_media_is_refused(source):
    config = both()
    beside = replace(config.streams["beside"], source=source)
    with pytest.raises(ConfigError, match=rf"'beside' sees what '{source}' sees; with media of their own: \['image'\]"):
        replace(config, streams={**config.streams, "beside": beside})


def test_a_stream_that_follows_needs_a_transform_too():
    processor = Processor.Config(transforms={"image": ImageTransform(size=32)}).build(tokenizer(), both())
    with pytest.raises((ConfigError, DataError), match="no transform for stream 'beside'"):
        processor.encode(question(picture(0), "which?"), reply=True)
