"""A LLaVA-NeXT folder with its real kind of tokenizer: read, asked, converted both ways, and always the reference's words."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reference_models import assert_close, opened_silently, randomise
from typer.testing import CliRunner

from weft.core.conversation import Conversation, Media, assistant, user
from weft.data.collate import collate
from weft.inference.sampling import Sampling
from weft.recipes.converting import convert
from weft.recipes.loading import load_model
from weft.serving.cli import app

transformers = pytest.importorskip("transformers")
sentencepiece = pytest.importorskip("sentencepiece")

SIDE = 28
LINES = ["USER: what is 12 + 30? ASSISTANT: 42", "[INST] naïve façade, 你好 [/INST] это кот"]
VISION = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": SIDE,
    "patch_size": 7, "model_type": "clip_vision_model",
}  # fmt: skip
TEXT = {
    "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 1024, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = {
    "vicuna": {"model_type": "llama"},
    "mistral": {"model_type": "mistral", "sliding_window": None, "rope_theta": 1e6},
}
QUESTION = "what is 12 + 30? naïve 你好"
PROMPTS = {"vicuna": f"USER: <image>\n{QUESTION} ASSISTANT:", "mistral": f"[INST] <image>\n{QUESTION} [/INST]"}
SIZES = [(40, 30), (100, 25), (28, 28), (33, 90)]


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8))


def asked(*sizes: tuple[int, int]) -> Conversation:
    """A question for each picture, answers between them."""
    turns = [user(Media(picture(*size)), QUESTION) for size in sizes]
    answered = [message for turn in turns[:-1] for message in (turn, assistant("это кот"))]
    return Conversation((*answered, turns[-1]))


def write_published(folder: Path, family: str) -> None:
    """What a published repository holds, small: a SentencePiece tokenizer with tokens added, tiles, a padded table."""
    sentences = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 20), model_writer=sentences, minloglevel=3, hard_vocab_limit=False, model_type="bpe",
        vocab_size=360, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, character_coverage=0.995,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(sentences.getvalue())
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = transformers.LlamaTokenizerFast.from_pretrained(folder, local_files_only=True)
    tokenizer.add_special_tokens({"pad_token": "<pad>", "additional_special_tokens": ["<image>"]})
    pinpoints = [[SIDE * rows, SIDE * columns] for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
    config = transformers.LlavaNextConfig(
        vision_config=VISION,
        text_config={**TEXT, **FAMILIES[family], "vocab_size": -(-len(tokenizer) // 64) * 64},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
    )
    model = randomise(transformers.LlavaNextForConditionalGeneration(config))
    model.lm_head.weight.data[3:259] = 0.0  # the bytes: without them, what is said is text whole and piece by piece
    model.save_pretrained(folder)
    images = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=pinpoints
    )
    transformers.LlavaNextProcessor(
        images, tokenizer, patch_size=7, vision_feature_select_strategy="default", num_additional_image_tokens=1
    ).save_pretrained(folder)


@pytest.fixture(scope="module", params=FAMILIES)
def published(request, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(f"llava-next-{request.param}")
    write_published(folder, request.param)
    return request.param, folder


def reference(folder: Path):
    model = opened_silently(folder, transformers.LlavaNextForConditionalGeneration)
    return model, transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)


def assert_same(model, theirs, processor, *sizes: tuple[int, int]) -> None:
    """Ids, pixels, logits and greedy words of one conversation about pictures of these sizes."""
    question = asked(*sizes)
    sample = model.processor.encode(question, reply=True)
    inputs = processor(images=[picture(*size) for size in sizes], text=sample.text, return_tensors="pt")
    assert sample.tokens.tolist() == inputs["input_ids"][0].tolist()
    batch = collate([sample])
    counts = [layout.num_units for layout in batch.media["image"].layout]
    pixels = torch.cat([tiles[:count] for tiles, count in zip(inputs["pixel_values"], counts, strict=True)])
    assert (batch.media["image"].units - pixels).abs().max() < 1e-5  # float32 against float64 normalisation
    output = model.system(batch)
    assert_close(output.heads["text"](output.hidden), theirs(**inputs).logits)
    said = theirs.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    reply = model.generate([question], Sampling(max_new_tokens=12))[0]
    assert list(reply.token_ids) == [token for token in said if token not in model.processor.stop_ids]


@torch.no_grad()
def test_a_published_folder_says_the_same_in_weft(published):
    family, folder = published
    model = load_model(folder)
    assert model.processor.encode(asked(SIZES[0]), reply=True).text.endswith(PROMPTS[family])
    theirs, processor = reference(folder)
    for size in SIZES:
        assert_same(model, theirs, processor, size)
    assert_same(model, theirs, processor, *SIZES[:3])


@torch.no_grad()
def test_converted_to_weft_and_back_it_is_what_it_was(published, tmp_path):
    _, folder = published
    ours = convert(folder, tmp_path / "weft", to="weft")
    back = convert(ours, tmp_path / "back")
    first, _ = reference(folder)
    again, processor = reference(back)
    assert type(processor).__name__ == "LlavaNextProcessor"
    expected, found = first.state_dict(), again.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    model = load_model(ours)
    assert model.processor.config.template == load_model(back).processor.config.template
    assert_same(model, again, processor, *SIZES[1:3])


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
    words = model.processor.decode([token for token in said if token not in model.processor.stop_ids]).strip()
    assert words.split() == result.output.split()[-len(words.split()) :] and words
