"""The processor: media in their places, cuts that spare media, captions, boxes, and errors that name the sample."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image

from weft.core import config
from weft.core.batch import IGNORE
from weft.core.conversation import Conversation, Media, Region, assistant, system, user
from weft.core.errors import ConfigError, ContextTooShort, DataError
from weft.core.interfaces import System
from weft.core.layout import MediaLayout
from weft.data.boxes import BinnedBoxes, FractionBoxes
from weft.data.collate import collate
from weft.data.images import HALF, ImageTransform
from weft.data.processor import Processor
from weft.data.tokenizers import Tokenizer

BOXES = BinnedBoxes(bins=8)
SPECIAL = ("<pad>", "<s>", "</s>", "<image>", "<|user|>", "<|assistant|>", "<|end|>", *BOXES.special_tokens)
TOKENIZER = Tokenizer.train(["What is in the picture? A red cat on a mat."] * 4, 330, SPECIAL)
TRANSFORM = ImageTransform(size=8, resize="direct", mean=HALF, std=HALF)
PICTURE = np.full((8, 8, 3), 255, dtype=np.uint8)


@dataclass(frozen=True, kw_only=True)
class Stand(System.Config):
    """The answers of a system's config, without a system."""

    positions: int = 3
    text: int = 20

    def build(self) -> System:
        raise AssertionError("the processor needs a system's config, never the system")

    def num_positions(self, stream: str, layout: MediaLayout | None = None) -> int:
        return self.positions

    def layout(self, stream: str) -> MediaLayout:
        return MediaLayout(1, 3)

    @property
    def context(self) -> int:
        return self.text


def processor(template: str = "compact", system: Stand = Stand(), tokenizer: Tokenizer = TOKENIZER, **fields) -> Processor:
    return Processor.Config(template=template, transforms={"image": TRANSFORM}, **fields).build(tokenizer, system)


ASKED = Conversation((system(""), user(Media(PICTURE), "What?"), assistant("A cat.")), id="4", source="set")


def test_a_medium_takes_the_systems_positions_and_its_pixels_wait_beside():
    sample = processor().encode(ASKED)
    (medium,) = sample.media["image"]
    assert medium.spans == ((0, 2, 3),)  # after <s> and <|user|>
    assert sample.tokens[:6].tolist() == [
        TOKENIZER.special[t] for t in ("<s>", "<|user|>", "<image>", "<image>", "<image>")
    ] + [TOKENIZER.encode("What?")[0]]
    assert sample.modality.tolist() == [0, 0, 1, 1, 1] + [0] * (len(sample) - 5)
    assert np.shares_memory(medium.units, PICTURE), "an array of the right size is not copied"
    assert (sample.id, sample.source) == ("4", "set")


def test_a_system_that_reads_media_elsewhere_has_no_position_for_them():
    sample = processor(system=Stand(positions=0)).encode(ASKED)
    assert not sample.modality.any() and TOKENIZER.special["<image>"] not in sample.tokens
    assert sample.media["image"][0].spans == ()


def test_two_images_keep_their_order():
    black = np.zeros((8, 8, 3), dtype=np.uint8)
    spoken = Conversation((user(Media(PICTURE), "and", Media(black), "?"), assistant("Yes.")))
    first, second = processor().encode(spoken).media["image"]
    assert (first.units[0, 0, 0, 0], second.units[0, 0, 0, 0]) == (255, 0)
    assert (first.spans, second.spans) == (((0, 2, 3),), ((0, 5, 3),))


def test_a_prompt_for_a_reply_is_the_start_of_the_whole_sample_and_teaches_nothing():
    whole = processor().encode(ASKED)
    prompt = processor().encode(Conversation(ASKED.messages[:2]), reply=True)
    assert whole.tokens[: len(prompt)].tolist() == prompt.tokens.tolist()
    assert (prompt.targets == IGNORE).all()


def test_the_end_of_a_long_conversation_is_cut():
    whole, cut = processor().encode(ASKED), processor().encode(ASKED, max_tokens=10)
    assert len(cut) == 10 < len(whole)
    assert cut.tokens.tolist() == whole.tokens[:10].tolist()
    assert cut.targets[:9].tolist() == whole.targets[:9].tolist() and cut.targets[9] == IGNORE


@pytest.mark.parametrize("max_tokens", [1, 2, 4])
def test_a_medium_is_never_cut(max_tokens):
    with pytest.raises(ContextTooShort, match=f"sample set:4: medium 1 of 1 needs 3 positions .* {max_tokens} are available"):
        processor().encode(ASKED, max_tokens=max_tokens)
    assert processor().encode(ASKED, max_tokens=5).modality.sum() == 3


def test_a_prompt_is_never_cut():
    prompt = Conversation(ASKED.messages[:2], id="4", source="set")
    with pytest.raises(ContextTooShort, match=r"sample set:4: the prompt needs .* 6 are available"):
        processor().encode(prompt, max_tokens=6, reply=True)


@pytest.mark.parametrize("text", ["<image> What?", "the marker <image>, twice <image>"])
@pytest.mark.parametrize("known", [True, False], ids=["image token", "no image token"])
def test_a_marker_in_the_text_is_refused(text, known):
    tokenizer = TOKENIZER if known else Tokenizer.train(["a"], 300, tuple(t for t in SPECIAL if t != "<image>"))
    for parts in ((text,), (Media(PICTURE), text)):
        with pytest.raises(DataError, match="sample set:1: its text writes the marker <image>"):
            processor(tokenizer=tokenizer).encode(Conversation((user(*parts), assistant("A")), id="1", source="set"))


def test_a_picture_that_cannot_be_read_is_named_with_its_sample(tmp_path):
    path = tmp_path / "no.png"
    path.write_text("no picture")
    with pytest.raises(DataError, match=r"sample set:2, image 1: .*no\.png is no image of a known format"):
        processor().encode(Conversation((user(Media(str(path)), "Q"), assistant("A")), id="2", source="set"))
    with pytest.raises(DataError, match="sample set:2, image 1: an image array is"):
        processor().encode(Conversation((user(Media(np.zeros(3, np.uint8))),), id="2", source="set"))


def test_a_stream_without_a_transform_is_refused():
    with pytest.raises(ConfigError, match="no transform for stream 'sound'"):
        processor().encode(Conversation((user(Media(b"", stream="sound")),)))


def test_box_tokens_are_learned_and_survive_decoding():
    ready = processor(boxes=BOXES)
    spoken = Conversation((user(Media(PICTURE), "Where?"), assistant(Region((0.0, 0.25, 0.5, 1.0)))))
    sample = ready.encode(spoken)
    taught = sample.targets[sample.targets != IGNORE]
    boxes = [TOKENIZER.special[t] for t in ("<b00>", "<b02>", "<b04>", "<b07>", "<|end|>")]
    assert taught.tolist() == [*TOKENIZER.encode(" "), *boxes]  # the template's space leads every answer
    assert ready.decode(taught) == " " + BOXES.render((0.0, 0.25, 0.5, 1.0))


def test_a_tokenizer_without_the_box_tokens_is_refused():
    bare = Tokenizer.train(["a"], 300, SPECIAL[:7])
    with pytest.raises(ConfigError, match="lacks 8 box tokens such as '<b00>'"):
        processor(tokenizer=bare, boxes=BOXES)
    grown = bare.with_special(BOXES.special_tokens)
    assert processor(tokenizer=grown, boxes=BOXES).tokenizer.vocabulary == bare.vocabulary + 8


def test_square_boxes_use_the_size_of_the_named_picture():
    wide, tall = Image.new("RGB", (20, 10)), Image.new("RGB", (10, 20))
    region = (0.0, 0.0, 1.0, 1.0)
    spoken = Conversation((user(Media(wide), Media(tall), "?"), assistant(Region(region, 0), Region(region, 1))))
    text = processor(boxes=FractionBoxes(square=True)).encode(spoken).text
    assert "[0.0, 0.25, 1.0, 0.75][0.25, 0.0, 0.75, 1.0]" in text
    with pytest.raises(DataError, match=r"names medium 2 \(from 0\), the conversation has 1"):
        processor().encode(Conversation((user(Media(wide)), assistant(Region(region, 2)))))


def test_captions_stand_between_begin_and_end():
    special = TOKENIZER.special
    spoken = Conversation((user(Media(PICTURE), "Describe."), assistant("A cat")))
    clip = processor("clip_text").encode(spoken)
    content = TOKENIZER.encode("A cat")
    assert clip.tokens.tolist() == [special["<s>"], *content, special["</s>"]]
    assert (clip.targets == IGNORE).all() and not clip.modality.any()
    assert len(clip.media["image"]) == 1 and clip.media["image"][0].spans == ()
    siglip = processor("siglip_text").encode(spoken)
    assert len(siglip) == 20
    assert siglip.tokens.tolist() == clip.tokens.tolist() + [special["</s>"]] * (20 - len(clip))


def test_long_captions_are_cut_before_their_end_token():
    spoken = Conversation((assistant("A red cat on a mat " * 9),))
    for template in ("clip_text", "siglip_text"):
        sample = processor(template).encode(spoken)
        assert len(sample) == 20 and sample.tokens[-1] == TOKENIZER.special["</s>"]
        assert TOKENIZER.special["</s>"] not in sample.tokens[:-1]
        assert len(processor(template).encode(spoken, max_tokens=9)) == 9
        with pytest.raises(ContextTooShort, match="no room for a caption"):
            processor(template).encode(spoken, max_tokens=2)


def test_replies_stop_at_the_templates_end():
    special = TOKENIZER.special
    assert processor("compact").stop_ids == {special["<|end|>"], special["</s>"]}
    assert processor("vicuna_v1").stop_ids == {special["</s>"]}
    assert processor("plain").stop_ids == {special["</s>"], TOKENIZER.encode("\n")[0]}
    with pytest.raises(ConfigError, match=r"ends answers with '<\|eot_id\|>'"):
        processor("llama_3")


def test_decoding_leaves_special_tokens_out():
    sample = processor().encode(ASKED)
    assert processor().decode(sample.tokens) == "What? A cat."
    assert processor().decode(torch.tensor(sample.targets[sample.targets != IGNORE])) == " A cat."


def test_a_config_survives_its_file():
    saved = Processor.Config(template="plain", transforms={"image": replace(TRANSFORM, pad_to_square=True)}, boxes=BOXES)
    assert config.loads(config.dumps(saved)) == saved


def test_the_batch_of_a_conversation():
    batch = collate([processor().encode(ASKED)])
    media = batch.media["image"]
    assert media.units.shape == (1, 3, 8, 8) and (media.units == 1).all()
    assert media.spans.tolist() == [[0, 0, 0, 2, 3]]
    assert media.layout == (MediaLayout(1, 3),)
    assert batch.samples[0].id == "4"
