"""LLaVA-NeXT against `transformers`: the whole model from random weights, and a folder from pixels to words."""

import numpy as np
import pytest
import torch
from PIL import Image
from reference_models import assert_close, randomise, to_transformers, to_weft
from tiny_model import tokenizer

from weft.checkpoints import llava_next
from weft.checkpoints.checkpoint_format import checkpoint_formats
from weft.core.conversation import Conversation, Media, user
from weft.core.errors import CheckpointError
from weft.data.collate import collate
from weft.data.images import ImageTransform
from weft.data.processor import Processor
from weft.data.tiles import AnyResolution, DynamicTiling, PictureTiles
from weft.inference.sampling import Sampling
from weft.recipes.loading import load_model
from weft.recipes.transformers_writing import write_transformers_folder

transformers = pytest.importorskip("transformers")

SIDE = 28
VISION = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": SIDE,
    "patch_size": 7, "model_type": "clip_vision_model",
}  # fmt: skip
TEXT = {
    "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 320, "max_position_embeddings": 512, "model_type": "llama", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
IMAGE = tokenizer().special["<image>"]
PINPOINTS = [[SIDE * rows, SIDE * columns] for rows, columns in AnyResolution().grids]
SIZES = [(40, 30), (100, 25), (28, 28), (33, 90)]
SPELLINGS = {
    "4.x": lambda key: key,
    "5.x saved": lambda key: key.replace("vision_tower.vision_model.", "vision_tower."),
    "5.x modules": lambda key: {
        "vision_tower": "model." + key.replace("vision_model.", ""),
        "multi_modal_projector": "model." + key,
        "image_newline": "model." + key,
        "language_model": key.replace("language_model.model.", "model.language_model.").replace(
            "language_model.lm_head", "lm_head"
        ),
    }[key.split(".")[0]],
}


def reference():
    config = transformers.LlavaNextConfig(
        vision_config=VISION, text_config=TEXT, image_token_index=IMAGE, image_grid_pinpoints=PINPOINTS
    )
    return randomise(transformers.LlavaNextForConditionalGeneration(config))


def image_processor():
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    return transformers.LlavaNextImageProcessorPil(**size, image_grid_pinpoints=PINPOINTS)


def picture(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def asked(*sizes: tuple[int, int]) -> Conversation:
    return Conversation((user(*(part for size in sizes for part in (Media(picture(*size)), "which colour is it?"))),))


@pytest.mark.parametrize("spelling", SPELLINGS)
@torch.no_grad()
def test_logits_equal_the_reference_for_pictures_of_several_shapes(tmp_path, spelling):
    theirs = reference()
    ours = to_weft(theirs, tmp_path, rename=SPELLINGS[spelling])
    transform = PictureTiles(view=ImageTransform(size=SIDE, resize="direct"), tiling=AnyResolution())
    processor = Processor.Config(transforms={"image": transform}).build(tokenizer(), ours.config)
    sample = processor.encode(asked(*SIZES), reply=True)
    inputs = image_processor()([picture(*size) for size in SIZES], return_tensors="pt")
    expected = theirs(input_ids=torch.tensor(sample.tokens)[None], **inputs).logits
    output = ours(collate([sample]))
    assert_close(output.heads["text"](output.hidden), expected)


@torch.no_grad()
def test_what_weft_writes_the_reference_loads_without_a_word_about_keys(tmp_path):
    theirs = reference()
    ours = to_weft(theirs, tmp_path / "theirs")
    again = to_transformers(ours, transformers.LlavaNextForConditionalGeneration, tmp_path / "ours")
    expected = theirs.state_dict()
    assert expected.keys() == again.state_dict().keys()
    assert all(torch.equal(value, expected[key]) for key, value in again.state_dict().items())
    assert again.config.image_grid_pinpoints == PINPOINTS


@torch.no_grad()
def test_a_folder_written_by_transformers_says_the_same_in_weft(tmp_path):
    theirs = reference()
    theirs.save_pretrained(tmp_path)
    tokenizer().save(tmp_path)
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    words.save_pretrained(tmp_path)
    both = transformers.LlavaNextProcessor(
        image_processor(), words, patch_size=7, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    both.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert model.processor.config.transforms["image"].tiling == AnyResolution()
    question = asked((60, 25))
    sample = model.processor.encode(question, reply=True)
    inputs = both(images=picture(60, 25), text=sample.text, return_tensors="pt", add_special_tokens=False)
    ids = torch.tensor(sample.tokens)[None]
    assert ids[0].tolist()[-inputs["input_ids"].shape[1] :] == inputs["input_ids"][0].tolist()
    said = theirs.generate(
        input_ids=ids,
        pixel_values=inputs["pixel_values"],
        image_sizes=inputs["image_sizes"],
        max_new_tokens=12,
        do_sample=False,
    )[0, ids.shape[1] :].tolist()
    reply = model.generate([question], Sampling(max_new_tokens=12))[0]
    assert list(reply.token_ids) == [token for token in said if token not in model.processor.stop_ids]


@torch.no_grad()
def test_a_folder_written_by_weft_says_the_same_in_transformers(tmp_path):
    ours = to_weft(reference(), tmp_path)
    grids = ((1, 1), (2, 1), (2, 3))
    transform = PictureTiles(view=ImageTransform(size=SIDE, resize="direct"), tiling=AnyResolution(grids=grids))
    processor = Processor.Config(transforms={"image": transform}).build(tokenizer(), ours.config)
    folder = tmp_path / "written"
    folder.mkdir()
    write_transformers_folder(folder, ours, processor)
    both = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True).eval()
    assert type(both).__name__ == "LlavaNextProcessor"
    for size in SIZES:
        sample = processor.encode(asked(size), reply=True)
        inputs = both(images=picture(*size), text=sample.text, return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == sample.tokens.tolist()
        output = ours(collate([sample]))
        assert_close(output.heads["text"](output.hidden), theirs(**inputs).logits)
    again = load_model(folder)
    assert again.system.config == ours.config and again.processor.config.transforms == processor.config.transforms


def test_a_way_to_cut_pictures_that_the_layout_does_not_have_is_refused(tmp_path):
    ours = to_weft(reference(), tmp_path)
    view = ImageTransform(size=SIDE, resize="direct")
    empty = tmp_path / "empty"
    empty.mkdir()
    for transform in (view, PictureTiles(view=view, tiling=DynamicTiling()), PictureTiles(view=ImageTransform(size=SIDE))):
        processor = Processor.Config(transforms={"image": transform}).build(tokenizer(), ours.config)
        with pytest.raises(CheckpointError, match="holds PictureTiles of AnyResolution with a direct view"):
            write_transformers_folder(empty, ours, processor)
        assert not list(empty.iterdir())


def test_layouts_that_are_not_llava_next_are_refused():
    with pytest.raises(CheckpointError, match="keeps the class token"):
        llava_next.read_config({"vision_feature_select_strategy": "full"})
    plain = checkpoint_formats()["llava"].tiny()[0]
    with pytest.raises(CheckpointError, match="holds a projector with Tiles around it"):
        llava_next.write_config(plain)
    with pytest.raises(CheckpointError, match="not MLP of depth 2"):
        checkpoint_formats()["llava"].write_config(checkpoint_formats()["llava_next"].tiny()[0])


def test_the_published_model_has_its_projector_and_one_newline_more_than_llava():
    config = llava_next.read_config({"text_config": {"model_type": "llama", "hidden_size": 4096}})
    with torch.device("meta"):
        projector = config.streams["image"].build(4096).projector
    assert sum(p.numel() for p in projector.parameters()) == 20_979_712 + 4096
