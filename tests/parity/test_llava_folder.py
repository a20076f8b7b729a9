"""A LLaVA-1.5 folder as `transformers` writes it: tokenizer, image processor and weights, all read by Weft."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reference_models import randomise
from typer.testing import CliRunner

from weft.core.conversation import Conversation, Media, user
from weft.core.errors import CheckpointError
from weft.data.collate import collate
from weft.inference.sampling import Sampling
from weft.recipes.loading import load_model
from weft.serving.cli import app

transformers = pytest.importorskip("transformers")
sentencepiece = pytest.importorskip("sentencepiece")

LINES = [
    "A chat between a curious user and an assistant.",
    "USER: what is 12 + 30? ASSISTANT: 42",
    "naïve façade, 你好, это кот",
]
VISION = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 28,
    "patch_size": 7, "model_type": "clip_vision_model",
}  # fmt: skip
TEXT = {
    "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 4, "model_type": "llama",
    "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
QUESTION = Conversation((user(Media(PICTURE), "what is 12 + 30? naïve 你好"),))


def write_published(folder: Path) -> None:
    """What the published repositories hold: Llama's tokenizer with two tokens added, CLIP's preprocessing, a padded table."""
    sentences = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 20), model_writer=sentences, minloglevel=3, hard_vocab_limit=False, model_type="bpe",
        vocab_size=400, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, character_coverage=0.995,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(sentences.getvalue())
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = transformers.LlamaTokenizerFast.from_pretrained(folder, local_files_only=True)
    known = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<pad>", "additional_special_tokens": ["<image>"]})
    added = {token: number for token, number in tokenizer.get_added_vocab().items() if number >= known}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    config = transformers.LlavaConfig(
        vision_config=VISION,
        text_config={**TEXT, "vocab_size": -(-len(tokenizer) // 64) * 64},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    randomise(transformers.LlavaForConditionalGeneration(config)).save_pretrained(folder)
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    transformers.LlavaProcessor(
        images, tokenizer, patch_size=7, vision_feature_select_strategy="default", num_additional_image_tokens=1
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llava-1.5")
    write_published(folder)
    return folder


@torch.no_grad()
def test_a_folder_written_by_transformers_says_the_same_in_weft(published):
    model = load_model(published)
    sample = model.processor.encode(QUESTION, reply=True)
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(published, local_files_only=True).eval()
    processor = transformers.AutoProcessor.from_pretrained(published, local_files_only=True)
    inputs = processor(images=PICTURE, text=sample.text, return_tensors="pt")
    assert sample.text.endswith("USER: <image>\nwhat is 12 + 30? naïve 你好 ASSISTANT:")
    assert sample.tokens.tolist() == inputs["input_ids"][0].tolist()
    units = collate([sample]).media["image"].units
    assert (units - inputs["pixel_values"]).abs().max() < 1e-5  # float32 against float64 normalisation
    said = theirs.generate(**inputs, max_new_tokens=16)[0, inputs["input_ids"].shape[1] :].tolist()
    reply = model.generate([QUESTION], Sampling(max_new_tokens=16))[0]
    assert list(reply.token_ids) == [token for token in said if token not in model.processor.stop_ids]


def test_the_vocabulary_is_the_table_of_the_config_not_of_the_tokenizer(published):
    model = load_model(published)
    rows = model.system.config.language_model.vocabulary
    assert model.processor.tokenizer.vocabulary < rows and rows % 64 == 0
    assert len(model.system.language_model.embedding.weight) == len(model.system.language_model.output.weight) == rows


def older_layout(published: Path, folder: Path, added: dict[str, int] | None = None) -> Path:
    """The same without tokenizer.json: a SentencePiece model and the tokens added to it."""
    for path in published.iterdir():
        if path.name != "tokenizer.json":
            (folder / path.name).write_bytes(path.read_bytes())
    if added is not None:
        (folder / "added_tokens.json").write_text(json.dumps(added))
    return folder


def test_tokens_added_to_a_sentencepiece_model_are_read(published, tmp_path):
    whole, older = load_model(published), load_model(older_layout(published, tmp_path))
    assert older.processor.encode(QUESTION).tokens.tolist() == whole.processor.encode(QUESTION).tokens.tolist()


def test_added_tokens_whose_ids_do_not_follow_on_are_refused(published, tmp_path):
    with pytest.raises(CheckpointError, match=r"added_tokens\.json: the ids of <image> do not follow on"):
        load_model(older_layout(published, tmp_path, {"<image>": 7}))


def test_a_tokenizer_larger_than_the_table_is_refused(published, tmp_path):
    rows = load_model(published).system.config.language_model.vocabulary
    first = min(json.loads((published / "added_tokens.json").read_text()).values())
    added = {"<image>": first, **{f"<extra{n}>": first + 1 + n for n in range(rows - first)}}
    with pytest.raises(CheckpointError, match=f"the tokenizer has {rows + 1} ids, the model's table {rows} rows"):
        load_model(older_layout(published, tmp_path, added))


def test_weft_chat_and_convert_say_what_the_reference_says(published, tmp_path):
    PICTURE.save(tmp_path / "picture.png")
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(published, local_files_only=True).eval()
    processor = transformers.AutoProcessor.from_pretrained(published, local_files_only=True)
    model = load_model(published)
    sample = model.processor.encode(QUESTION, reply=True)
    inputs = processor(images=PICTURE, text=sample.text, return_tensors="pt")
    with torch.no_grad():
        said = theirs.generate(**inputs, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :].tolist()
    kept = next((i for i, token in enumerate(said) if token in model.processor.stop_ids), len(said))
    words = "".join(model.processor.decode(said[:kept]).split())
    for to in ("weft", "transformers"):
        done = CliRunner().invoke(app, ["convert", str(published), str(tmp_path / to), "--to", to])
        assert done.exit_code == 0, done.output
    asked = ["--image", str(tmp_path / "picture.png"), "--prompt", QUESTION.messages[0].parts[1].text]
    for folder in (published, tmp_path / "weft", tmp_path / "transformers"):
        result = CliRunner().invoke(app, ["chat", str(folder), *asked, "--max-new-tokens", "6", "--device", "cpu"])
        assert result.exit_code == 0, result.output
        assert words in "".join(result.output.split())
