"""LLaVA that hears: each tower in the audio stream's place, beside pictures, alone, and left out."""

from dataclasses import replace

import pytest
import torch

from weft.core.conversation import Conversation, Media, assistant, user
from weft.core.errors import ConfigError
from weft.data.collate import collate
from weft.data.desk.listening import DeskListening
from weft.objectives.next_token import NextToken
from weft.recipes import llava_1_5, llava_audio
from weft.recipes.catalogue import recipe, sizes_of
from weft.recipes.shrinking import tiny_tokenizer
from weft.systems.accounting import num_parameters, on_meta
from weft.training.freezing import freeze

LLAVA_1_5 = 7_062_902_784
TOKENS = {"whisper": 300, "hubert": 300, "clap": 21, "clap-laion": 64}
SAMPLE = DeskListening.Config(kind="speech_and_picture", num_turns=1).build()


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(50)


@pytest.mark.parametrize("size", sizes_of("llava-audio"))
def test_stages_and_tokens(size):
    align, instruct = recipe("llava-audio", size).stages
    assert (align.optimizer.learning_rate, align.batch_size) == (1e-3, 256)
    assert (instruct.optimizer.learning_rate, instruct.batch_size) == (2e-5, 128)
    for stage in (align, instruct):
        assert stage.system.num_positions("audio") == TOKENS[size] and stage.system.num_positions("image") == 576
        assert stage.processor.transforms["audio"].unit_shape == stage.system.streams["audio"].encoder.unit_shape


@pytest.mark.parametrize(("size", "tower"), [("whisper", 636_784_640 - 1500 * 1280), ("hubert", 315_438_720)])
def test_what_is_added_to_llava_and_what_trains(size, tower):
    align, instruct = recipe("llava-audio", size).stages
    system = on_meta(align.system)
    audio = system.stream("audio")
    assert num_parameters(system) == LLAVA_1_5 + num_parameters(audio)
    assert num_parameters(audio.encoder) == tower
    first, second = (set(freeze(system, stage.train)) for stage in (align, instruct))
    assert {name.split(".projector.")[0] for name in first} == {"streams.audio", "streams.image"}
    assert {name for name in second - first if not name.startswith("language_model.")} == set()
    assert second - first == {name for name, _ in system.named_parameters() if name.startswith("language_model.")}


def test_an_unknown_size_is_told_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'whisper'"):
        llava_audio.llava_audio("wisper")


def built(size, tokenizer):
    stage = llava_audio.tiny(size).stages[-1]
    torch.manual_seed(0)
    return stage.system.build().eval(), stage.processor.build(tokenizer, stage.system), stage


@pytest.mark.parametrize("size", sizes_of("llava-audio"))
def test_every_tower_is_heard_and_every_projector_learns(size, tokenizer):
    system, processor, stage = built(size, tokenizer)
    conversation, other = SAMPLE[0], SAMPLE[1]
    swapped = with_medium(conversation, "audio", other)
    batch = collate([processor.encode(conversation), processor.encode(swapped)])
    assert set(batch.media) == {"image", "audio"}
    with torch.no_grad():
        logits = system(batch).logits()
    assert (logits[0] - logits[1]).abs().max() > 1e-4, "another recording, other logits"
    freeze(system, stage.train)
    NextToken.Config().build()(system, batch).mean().backward()
    for name in ("image", "audio"):
        assert all(p.grad is not None and p.grad.any() for p in system.stream(name).projector.parameters())
        assert all(p.grad is None for p in system.stream(name).encoder.parameters())


def with_medium(conversation, stream, other):
    """The conversation with the medium of a stream taken from another."""
    taken = next(medium for medium in other.media() if medium.stream == stream)
    messages = tuple(
        replace(m, parts=tuple(taken if isinstance(p, Media) and p.stream == stream else p for p in m.parts))
        for m in conversation.messages
    )
    return replace(conversation, messages=messages)


def test_samples_with_either_medium_both_and_none_share_a_batch(tokenizer):
    """Each has the logits that it has alone."""
    system, processor, _ = built("whisper", tokenizer)
    picture, recording = SAMPLE[0].media()
    conversations = [
        SAMPLE[0],
        Conversation((user(picture, "What?"), assistant("a red 7"))),
        Conversation((user(recording, "What?"), assistant("7"))),
        Conversation((user(recording, "What?", recording), assistant("7 7"))),
        Conversation((user("What?"), assistant("7"))),
    ]
    samples = [processor.encode(conversation) for conversation in conversations]
    with torch.no_grad():
        together = system(collate(samples)).logits()
        for row, sample in enumerate(samples):
            alone = system(collate([sample])).logits()[0]
            torch.testing.assert_close(together[row, : len(alone)], alone, rtol=0, atol=1e-5)  # float32, two blocks


def test_pictures_alone_are_what_they_are_to_llava(tokenizer):
    """With the same weights: a stream that is not there changes nothing, bit for bit."""
    system, processor, _ = built("whisper", tokenizer)
    seeing = llava_1_5.tiny().stages[-1]
    plain = seeing.system.build().eval()
    weights = {name: value for name, value in system.state_dict().items() if not name.startswith("streams.audio.")}
    plain.load_state_dict(weights)
    picture, _ = SAMPLE[0].media()
    conversation = Conversation((user(picture, "What?"), assistant("a red 7")))
    ours, theirs = (
        model(collate([made.encode(conversation)])).logits().detach()
        for model, made in ((system, processor), (plain, seeing.processor.build(tokenizer, seeing.system)))
    )
    assert torch.equal(ours, theirs)
