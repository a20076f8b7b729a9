"""Documents as tokens: what each system reads and learns of one, what a cut leaves, what a token sees, what a loss weighs."""

import base64
import json
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from weft.core.batch import IGNORE
from weft.core.conversation import Conversation, Media, assistant, user
from weft.core.errors import ConfigError, ContextTooShort
from weft.data.collate import collate
from weft.data.datasets.mixture import Mixture
from weft.data.datasets.mmc4 import Mmc4
from weft.data.desk.dataset import DeskConversations
from weft.data.interleaving import Interleaving
from weft.data.packing import pack
from weft.objectives.next_token import NextToken
from weft.recipes.catalogue import recipe, tiny_recipe
from weft.recipes.shrinking import tiny_tokenizer


def embedded(shade):
    content = BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(content, "png")
    return base64.b64encode(content.getvalue()).decode()


RECORD = {
    "text_list": ["a red 7", "two desks", "a blue 3", "bottom left", "a green 1"],
    "image_info": [
        {"image_name": "x", "image_base64": embedded(shade), "matched_text_index": sentence, "matched_sim": similarity}
        for shade, sentence, similarity in ((10, 4, 0.3), (20, 1, 0.25), (30, 2, 0.1))
    ],
}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(100)


@pytest.fixture(scope="module")
def mmc4(tmp_path_factory):
    path = tmp_path_factory.mktemp("mmc4") / "docs.jsonl"
    path.write_text(json.dumps(RECORD) + "\n")
    return Mmc4.Config(path=str(path))


def processor(name, stage, tokenizer):
    made = tiny_recipe(name).stage(stage)
    return made.processor.build(tokenizer, made.system)


def published(name, stage, mmc4):
    """The document as the published recipe reads MMC4, but for the size of its pictures."""
    part = recipe(name).stage(stage).data.parts["mmc4"].data
    return replace(part, path=mmc4.path, min_bytes=0).build()[0]


def labels_of_openflamingo(ids, image, end_of_chunk):
    """The released script's rule, from its description: targets of the tokens themselves, not yet shifted."""
    labels = list(ids)
    for i in range(ids.index(image)):
        labels[i] = IGNORE
    for i, token in enumerate(ids):
        if token == end_of_chunk:
            behind = i + 1
            while behind < len(ids) and ids[behind] != image:
                labels[behind] = IGNORE
                behind += 1
    return [IGNORE if token == image else label for token, label in zip(ids, labels, strict=True)]


def test_openflamingo_learns_what_its_script_learns(tokenizer, mmc4):
    ready = processor("openflamingo", "train", tokenizer)
    sample = ready.encode(published("openflamingo", "train", mmc4))
    assert sample.text == "a red 7<image> two desks a blue 3 bottom left<|endofchunk|><image> a green 1<|endofchunk|>"
    special = tokenizer.special
    ids = sample.tokens.tolist()
    expected = labels_of_openflamingo(ids, special["<image>"], special["<|endofchunk|>"])
    assert sample.targets.tolist() == [*expected[1:], IGNORE]
    assert [m.units[0, 0, 0, 0] for m in sample.media["image"]] == [20, 10], "pictures are in the order of the text"


def test_vila_learns_all_text_of_a_document(tokenizer, mmc4):
    sample = processor("vila", "pretrain", tokenizer).encode(published("vila", "pretrain", mmc4))
    assert sample.text == "a red 7<image>\ntwo desks<image>\na blue 3 bottom left<image>\na green 1</s>"
    learned = tokenizer.decode(sample.targets[sample.targets != IGNORE], skip_special=False)
    assert learned == "a red 7two desksa blue 3 bottom lefta green 1</s>"


def test_idefics_writes_a_document_without_turns(tokenizer, mmc4):
    sample = processor("idefics", "pretrain", tokenizer).encode(mmc4.build()[0])
    around, image = "<fake_token_around_image>", "<image>"
    picture = around + image + around
    assert sample.text == f"a red 7{picture}two desks{picture}a blue 3 bottom left{picture}a green 1</s>"
    assert sample.targets[0] != IGNORE and sample.targets[-2] == tokenizer.special["</s>"]
    assert not {tokenizer.special[t] for t in (around, image)} & set(sample.targets.tolist())


def test_a_part_of_a_mixture_is_written_by_its_own_template(tokenizer, mmc4):
    """IDEFICS' dialogues have documents among them, which are still written as documents."""
    dialogues, documents = processor("idefics", "instruct", tokenizer), processor("idefics", "pretrain", tokenizer)
    told = DeskConversations.Config(epoch=10)
    parts = {"told": Mixture.Part(data=told), "read": Mixture.Part(data=mmc4, template="idefics_document", loss_weight=0.5)}
    mixed = Mixture.Config(parts=parts, epoch=4).build()
    from_documents = {index: bool(mixed[index].meta.get("document")) for index in range(4)}
    assert sorted(from_documents.values()) == [False, False, True, True]
    for index, document in from_documents.items():
        (ours,) = dialogues.encode_all(mixed[index])
        theirs = (documents if document else dialogues).encode(replace(mixed[index], meta={"document": document}))
        assert ours.text == theirs.text and ours.text.startswith("User:") is not document
        assert ours.tokens.tolist() == theirs.tokens.tolist() and ours.targets.tolist() == theirs.targets.tolist()
        assert ours.weight == (0.5 if document else 1.0)
    assert dialogues.config.template == "idefics", "the processor itself is as before"
    with pytest.raises(ConfigError, match="unknown template 'idefics_documents'; did you mean"):
        Mixture.Config(parts={"read": Mixture.Part(data=mmc4, template="idefics_documents")}).build()


@pytest.mark.parametrize(("name", "stage"), [("openflamingo", "train"), ("vila", "pretrain")])
def test_a_document_is_cut_with_the_media_behind_the_cut_and_a_conversation_is_not(name, stage, tokenizer, mmc4):
    ready = processor(name, stage, tokenizer)
    document = mmc4.build()[0]
    whole = ready.encode(document)
    places = [span[1:] for medium in whole.media["image"] for span in medium.spans]
    assert len(places) == 3
    for limit in range(1, len(whole)):
        cut = ready.encode(document, max_tokens=limit)
        kept = [(start, count) for start, count in places if start + count <= limit]
        straddled = [start for start, count in places if start < limit < start + count]
        assert len(cut) == (straddled[0] if straddled else limit)
        assert cut.tokens.tolist() == whole.tokens[: len(cut)].tolist()
        assert [span[1:] for medium in cut.media.get("image", ()) for span in medium.spans] == kept
        assert cut.targets[:-1].tolist() == whole.targets[: len(cut) - 1].tolist() and cut.targets[-1] == IGNORE
        for stream, seen in cut.visible.items():
            assert seen.tolist() == whole.visible[stream][: len(cut)].tolist()
    with pytest.raises(ContextTooShort, match="medium"):
        ready.encode(replace(document, meta={}), max_tokens=places[1][0])


def test_a_text_that_sees_the_next_picture_sees_none_behind_a_cut(tokenizer, mmc4):
    ready = processor("flamingo", "train", tokenizer)
    document = replace(mmc4, interleaving=Interleaving(next_share=1.0)).build()[0]
    whole = ready.encode(document)
    first, second, third = (span[1] for medium in whole.media["image"] for span in medium.spans)
    seen = whole.visible["image"]
    assert seen[:first].tolist() == [[0, 0]] * first and seen[first + 1].tolist() == [1, 1] and seen[-1].tolist() == [0, -1]
    cut = ready.encode(document, max_tokens=third)
    assert len(cut.media["image"]) == 2 and cut.visible["image"][second].tolist() == [1, 1]
    assert (cut.visible["image"][second + 1 :] == (0, -1)).all()


def pictured(text, id, **meta):
    return Conversation((user(Media(np.full((64, 64, 3), 9, np.uint8))), assistant(text)), id=id, meta=meta)


@pytest.fixture(scope="module")
def weighed(tokenizer):
    made = tiny_recipe("vila").stage("pretrain")
    torch.manual_seed(0)
    ready = made.processor.build(tokenizer, made.system)
    heavy, light = pictured("a red 7 top left", "heavy"), pictured("a blue 3", "light", loss_weight=0.25)
    return made.system.build().eval(), [ready.encode(heavy), ready.encode(light)]


def summed(system, sample):
    """The sum of a sample's token losses, and their number."""
    batch = collate([replace(sample, weight=1.0)])
    terms = NextToken.Config().build()(system, batch)
    return float(terms.sums["next_token"].detach()), float(terms.weights["next_token"])


@pytest.mark.parametrize("packed", [False, True])
def test_a_loss_weighs_tokens_as_their_samples_say(weighed, packed):
    system, samples = weighed
    (heavy, heavy_tokens), (light, light_tokens) = (summed(system, sample) for sample in samples)
    batch = collate(pack(samples, 200) if packed else samples)
    assert len(batch.main.tokens) == (1 if packed else 2)
    terms = NextToken.Config().build()(system, batch)
    assert float(terms.weights["next_token"]) == pytest.approx(heavy_tokens + 0.25 * light_tokens)
    assert float(terms.sums["next_token"].detach()) == pytest.approx(heavy + 0.25 * light, abs=1e-4)


def test_samples_that_all_weigh_one_write_no_weights(weighed):
    _, samples = weighed
    assert collate(samples[:1]).main.weights == {} and set(collate(samples).main.weights) == {"text"}
