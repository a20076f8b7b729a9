"""An IDEFICS folder, instructed or not: read, asked, converted both ways, and always the reference's words."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reference_models import assert_close, randomise
from typer.testing import CliRunner

from weft.core.conversation import Conversation, Media, assistant, user
from weft.data.collate import collate
from weft.data.tokenizers import Tokenizer
from weft.inference.sampling import Sampling
from weft.recipes.converting import convert
from weft.recipes.loading import load_model
from weft.serving.cli import app

transformers = pytest.importorskip("transformers")

SIDE = 28
LINES = ("what is 12 + 30?", "it is a red cat on a mat, and 42", "naïve façade, 你好, это кот")
AROUND, IMAGE, END = "<fake_token_around_image>", "<image>", "<end_of_utterance>"
QUESTION = "what is 12 + 30? naïve 你好"
PROMPTS = {
    "instructed": f"User: {AROUND}{IMAGE}{AROUND}{QUESTION}{END}\nAssistant:",
    "base": f"{AROUND}{IMAGE}{AROUND}{QUESTION}",
}


def picture(width, height):
    return Image.fromarray(np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8))


def asked(*sizes):
    """A question about each picture, answers between them."""
    turns = [user(Media(picture(*size)), QUESTION) for size in sizes]
    answered = [message for turn in turns[:-1] for message in (turn, assistant("42"))]
    return Conversation((*answered, turns[-1]))


def write_published(folder: Path, instructed: bool) -> None:
    """What a published repository holds, small: tokens behind the vocabulary, one more where it is instructed."""
    added = [AROUND, IMAGE, *([END] if instructed else [])]
    plain = Tokenizer.train(LINES * 5, 400, ("<unk>", "<s>", "</s>"))
    plain.with_special(added).save(folder)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>", pad_token="<unk>",
        additional_special_tokens=added,
    )  # fmt: skip
    config = transformers.IdeficsConfig(
        vocab_size=plain.vocabulary, additional_vocab_size=len(added), hidden_size=64, intermediate_size=96,
        num_hidden_layers=4, num_attention_heads=4, cross_layer_interval=2, qk_layer_norms=True, use_resampler=True,
        max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        vision_config={"embed_dim": 48, "image_size": SIDE, "intermediate_size": 96, "patch_size": 7, "num_hidden_layers": 2,
                       "num_attention_heads": 3},
        perceiver_config={"resampler_n_latents": 4, "resampler_depth": 2, "resampler_n_heads": 2, "resampler_head_dim": 8,
                          "qk_layer_norms_perceiver": True},
    )  # fmt: skip
    model = randomise(transformers.IdeficsForVisionText2Text(config))
    for name, parameter in model.named_parameters():
        if "alpha" in name:
            parameter.data.fill_(0.5)
    model.lm_head.weight.data[3:259] = 0.0  # the bytes: without them, what is said is text whole and piece by piece
    model.save_pretrained(folder)
    images = transformers.IdeficsImageProcessorPil(image_size=SIDE)
    transformers.IdeficsProcessor(images, tokenizer).save_pretrained(folder)


@pytest.fixture(scope="module", params=PROMPTS)
def published(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"idefics-{request.param}")
    write_published(folder, request.param == "instructed")
    return request.param, folder


def reference(folder):
    model, info = transformers.IdeficsForVisionText2Text.from_pretrained(
        folder, local_files_only=True, output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval(), transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)


def inputs_of(model, processor, *sizes):
    """What the library takes for a conversation, and ours of it."""
    sample = model.processor.encode(asked(*sizes), reply=True)
    ids = processor.tokenizer(sample.text, return_tensors="pt").input_ids
    assert sample.tokens.tolist() == ids[0].tolist()
    pixels = processor.image_processor([picture(*size) for size in sizes], return_tensors="pt")
    batch = collate([sample])
    assert (batch.media["image"].units - pixels).abs().max() < 1e-5  # float32 against float64 normalisation
    number = (ids == processor.image_token_id).cumsum(1) - 1
    mask = (number[..., None] == torch.arange(len(sizes))).long()
    return batch, {"input_ids": ids, "pixel_values": pixels[None], "image_attention_mask": mask}


def words_of(theirs, inputs, count):
    """Greedy words, everything read anew for each: the picture that each of them sees is the last one's."""
    ids, mask, said = inputs["input_ids"], inputs["image_attention_mask"], []
    for _ in range(count):
        logits = theirs(input_ids=ids, pixel_values=inputs["pixel_values"], image_attention_mask=mask, use_cache=False).logits
        said.append(int(logits[0, -1].argmax()))
        ids, mask = torch.cat((ids, torch.tensor([[said[-1]]])), 1), torch.cat((mask, mask[:, -1:]), 1)
    return said


def assert_same(model, theirs, processor, *sizes):
    """Ids, pixels, logits and greedy words of one conversation about pictures of these sizes."""
    batch, inputs = inputs_of(model, processor, *sizes)
    assert_close(model.system(batch).logits(), theirs(**inputs, use_cache=False).logits)
    said = words_of(theirs, inputs, 6)
    reply = model.generate([asked(*sizes)], Sampling(max_new_tokens=6))[0]
    kept = next((i for i, token in enumerate(said) if token in model.processor.stop_ids), len(said))
    assert list(reply.token_ids) == said[:kept]


@torch.no_grad()
def test_a_published_folder_says_the_same_in_weft(published):
    kind, folder = published
    model = load_model(folder)
    assert model.processor.encode(asked((28, 28)), reply=True).text == PROMPTS[kind]
    theirs, processor = reference(folder)
    assert_same(model, theirs, processor, (40, 30))
    assert_same(model, theirs, processor, (40, 30), (20, 60))


@torch.no_grad()
def test_converted_to_weft_and_back_it_is_what_it_was(published, tmp_path):
    _, folder = published
    ours = convert(folder, tmp_path / "weft", to="weft")
    back = convert(ours, tmp_path / "back", shard_bytes=100_000)
    assert (tmp_path / "back" / "model.safetensors.index.json").is_file()
    first, _ = reference(folder)
    again, processor = reference(back)
    assert type(processor).__name__ == "IdeficsProcessor"
    expected, found = first.state_dict(), again.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    model = load_model(ours)
    assert model.processor.config == load_model(back).processor.config == load_model(folder).processor.config
    assert_same(model, again, processor, (40, 30))


def test_weft_chat_answers_as_the_reference_does(published, tmp_path):
    _, folder = published
    picture(40, 30).save(tmp_path / "picture.png")
    model = load_model(folder)
    theirs, processor = reference(folder)
    with torch.no_grad():
        said = words_of(theirs, inputs_of(model, processor, (40, 30))[1], 6)
    arguments = ["chat", str(folder), "--image", str(tmp_path / "picture.png"), "--prompt", QUESTION]
    result = CliRunner().invoke(app, [*arguments, "--max-new-tokens", "6", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    kept = next((i for i, token in enumerate(said) if token in model.processor.stop_ids), len(said))
    assert "".join(model.processor.decode(said[:kept]).split()) in "".join(result.output.split())
