"""A Llama 3.2 Vision folder with its kind of tokenizer: read, asked, converted both ways, and always the reference's words:
those of `transformers` under Meta's rules and, of a system that is set so, those of the library as it is."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from metas_rules import under_metas_rules
from PIL import Image
from reference_models import assert_close, opened_silently, randomise
from typer.testing import CliRunner

from weft.checkpoints.mllama import TRANSFORMERS_RULES
from weft.core.conversation import Conversation, Media, assistant, user
from weft.data.collate import collate
from weft.data.tiles import FittedCanvas
from weft.data.tokenizers import Tokenizer
from weft.inference.sampling import Sampling
from weft.recipes.converting import convert
from weft.recipes.encoder_loading import load_encoder
from weft.recipes.loading import load_model
from weft.serving.cli import app

transformers = pytest.importorskip("transformers")

SIDE = 28
LINES = ("what is 12 + 30?", "it is a red cat on a mat, and 42", "naïve façade, 你好, это кот")
SPECIAL = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<|finetune_right_pad_id|>", "<|python_tag|>",
)  # fmt: skip
QUESTION = "what is 12 + 30? naïve 你好"
# what matters of the published one: it writes the begin token, and pictures where they stand
CHAT = (
    "{{- bos_token }}{% for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<|image|>' }}{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{{- '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
SIZES = [(28, 28), (60, 20), (50, 50), (20, 100)]


def picture(width, height):
    return Image.fromarray(np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8))


def asked(*sizes):
    """A question about each picture, answers between them."""
    turns = [user(Media(picture(*size)), QUESTION) for size in sizes]
    answered = [message for turn in turns[:-1] for message in (turn, assistant("42"))]
    return Conversation((*answered, turns[-1]))


def write_published(folder: Path, chat: bool) -> None:
    """What a published repository holds, small; the base models have no chat template."""
    plain = Tokenizer.train(LINES * 5, 400, SPECIAL).backend
    plain.post_processor = None
    vocabulary = plain.get_vocab_size()
    plain = Tokenizer(plain).with_special(["<|image|>"])
    plain.save(folder)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token=SPECIAL[0], eos_token="<|eot_id|>", pad_token=SPECIAL[5]
    )
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_global_layers": 1, "attention_heads": 2,
        "image_size": SIDE, "patch_size": 7, "vision_output_dim": 96, "intermediate_layers_indices": [0, 2],
    }  # fmt: skip
    text = {
        "vocab_size": vocabulary, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "cross_attention_layers": [1], "max_position_embeddings": 512, "bos_token_id": 0,
        "eos_token_id": [1, 4], "pad_token_id": 5, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    }  # fmt: skip
    config = transformers.MllamaConfig(vision_config=vision, text_config=text, image_token_index=vocabulary)
    model = randomise(transformers.MllamaForConditionalGeneration(config))
    model.generation_config.eos_token_id = [1, 4]
    byte_rows = slice(len(SPECIAL), len(SPECIAL) + 256)
    model.lm_head.weight.data[byte_rows] = 0.0  # without them, what is said is text whole and piece by piece
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(0.5)
    model.save_pretrained(folder)
    images = transformers.MllamaImageProcessorPil(size={"height": SIDE, "width": SIDE}, max_image_tiles=4)
    transformers.MllamaProcessor(images, tokenizer, chat_template=CHAT if chat else None).save_pretrained(folder)


@pytest.fixture(scope="module", params=["base", "chat"])
def published(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"mllama-{request.param}")
    write_published(folder, request.param == "chat")
    return request.param, folder


def stock(folder):
    """The library as it is, which must know every key of the folder and miss none."""
    model = opened_silently(folder, transformers.MllamaForConditionalGeneration)
    return model, transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)


def reference(folder):
    model, processor = stock(folder)
    return under_metas_rules(model), processor


def assert_same(model, theirs, processor, *sizes):
    """Ids, pixels, logits and greedy words of one conversation about pictures of these sizes."""
    question = asked(*sizes)
    sample = model.processor.encode(question, reply=True)
    inputs = processor(images=[picture(*size) for size in sizes], text=sample.text, return_tensors="pt")
    assert sample.tokens.tolist() == inputs["input_ids"][0].tolist()
    batch = collate([sample])
    counts = [layout.num_units for layout in batch.media["image"].layout]
    pixels = torch.cat([tiles[:count] for tiles, count in zip(inputs["pixel_values"][0], counts, strict=True)])
    assert (batch.media["image"].units - pixels).abs().max() < 1e-5  # far below 1/255
    expected = theirs(**inputs).logits
    assert_close(model.system(batch).logits(), expected)
    said = theirs.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    reply = model.generate([question], Sampling(max_new_tokens=8))[0]
    ends = model.processor.stop_ids | {1, 4}
    kept = next((i for i, token in enumerate(said) if token in ends), len(said))
    assert list(reply.token_ids)[:kept] == said[:kept]


@torch.no_grad()
def test_a_published_folder_says_the_same_in_weft(published):
    kind, folder = published
    model = load_model(folder)
    text = model.processor.encode(asked(SIZES[0]), reply=True).text
    if kind == "base":
        assert text == f"<|image|><|begin_of_text|>{QUESTION}"
    else:
        user_turn = f"<|start_header_id|>user<|end_header_id|>\n\n<|image|>{QUESTION}<|eot_id|>"
        assert text == f"<|begin_of_text|>{user_turn}<|start_header_id|>assistant<|end_header_id|>\n\n"
    theirs, processor = reference(folder)
    for size in SIZES:
        assert_same(model, theirs, processor, size)
    assert_same(model, theirs, processor, *SIZES[1:3])
    if kind == "base":  # the library moves the begin token behind the pictures itself
        ours = model.processor.encode(asked(SIZES[0]), reply=True).tokens.tolist()
        assert ours == processor(images=picture(*SIZES[0]), text="<|image|>" + QUESTION)["input_ids"][0]


@torch.no_grad()
def test_converted_to_weft_and_back_it_is_what_it_was(published, tmp_path):
    _, folder = published
    ours = convert(folder, tmp_path / "weft", to="weft")
    with pytest.warns(UserWarning, match="transformers computes otherwise than Weft from this folder"):
        back = convert(ours, tmp_path / "back")
    first, _ = reference(folder)
    again, processor = reference(back)
    assert type(processor).__name__ == "MllamaProcessor"
    expected, found = first.state_dict(), again.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    model = load_model(ours)
    assert model.processor.config.template == load_model(back).processor.config.template
    assert_same(model, again, processor, *SIZES[1:3])


@torch.no_grad()
def test_with_the_librarys_rules_it_says_what_the_library_says_as_it_is(published, tmp_path):
    """Three fields, set once: the Weft folder keeps them, and what is written of it needs no warning."""
    _, folder = published
    settings = [word for path, value in TRANSFORMERS_RULES for word in ("--set", f"{path}={value}")]
    ours, written = tmp_path / "weft", tmp_path / "written"
    done = CliRunner().invoke(app, ["convert", str(folder), str(ours), "--to", "weft", *settings])
    assert done.exit_code == 0, done.output
    with warnings.catch_warnings(action="error"):
        convert(ours, written)
    model = load_model(ours)
    theirs, processor = stock(written)
    for size in SIZES:
        assert_same(model, theirs, processor, size)
    assert_same(model, theirs, processor, *SIZES[1:3])
    batch = collate([model.processor.encode(asked(SIZES[1]), reply=True)])
    without = load_model(written).system(batch).logits()
    assert (without - model.system(batch).logits()).abs().max() > 1e-3, "the rules matter"


def test_weft_chat_answers_as_the_reference_does(published, tmp_path):
    _, folder = published
    picture(*SIZES[1]).save(tmp_path / "picture.png")
    theirs, processor = reference(folder)
    model = load_model(folder)
    sample = model.processor.encode(asked(SIZES[1]), reply=True)
    inputs = processor(images=picture(*SIZES[1]), text=sample.text, return_tensors="pt")
    with torch.no_grad():
        said = theirs.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    arguments = ["chat", str(folder), "--image", str(tmp_path / "picture.png"), "--prompt", QUESTION]
    result = CliRunner().invoke(app, [*arguments, "--max-new-tokens", "6", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    kept = next((i for i, token in enumerate(said) if token in model.processor.stop_ids), len(said))
    assert model.processor.decode(said[:kept]).strip() in result.output


def test_the_tower_opens_alone_with_its_tiles(published):
    _, folder = published
    loaded = load_encoder(folder)
    assert loaded.encoder.config == load_model(folder).system.config.streams["image"].encoder
    assert loaded.transform.tiling == FittedCanvas(max_tiles=4) and loaded.transform.view.size == SIDE
