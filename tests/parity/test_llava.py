"""LLaVA-1.5 against `transformers`, from random weights through the real key map; the published parameter counts."""

from dataclasses import replace

import pytest
import torch
from reference_models import randomise, to_transformers, to_weft

from weft.checkpoints.llava import LLAVA, read_config
from weft.core.batch import MediaBatch, MultimodalBatch, TextSide
from weft.core.layout import MediaLayout
from weft.inference.generate import Decoding, generate_tokens
from weft.inference.sampling import Sampling

transformers = pytest.importorskip("transformers")

IMAGE, VOCABULARY = 96, 112  # like the published file: the marker's id lies in the padding of the table
VISION = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 28,
    "patch_size": 7, "model_type": "clip_vision_model",
}  # fmt: skip
TEXT = {
    "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": VOCABULARY, "max_position_embeddings": 128, "model_type": "llama", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PATCHES = 16
SPELLINGS = {
    "4.x": lambda key: key,
    "5.x saved": lambda key: key.replace("vision_tower.vision_model.", "vision_tower."),
    "5.x modules": lambda key: {
        "vision_tower": "model." + key.replace("vision_model.", ""),
        "multi_modal_projector": "model." + key,
        "language_model": key.replace("language_model.model.", "model.language_model.").replace(
            "language_model.lm_head", "lm_head"
        ),
    }[key.split(".")[0]],
}


def reference(**changes):
    config = transformers.LlavaConfig(vision_config=VISION, text_config=TEXT, image_token_index=IMAGE, **changes)
    return randomise(transformers.LlavaForConditionalGeneration(config))


def prompts(pixels: torch.Tensor, features: int = PATCHES) -> tuple[torch.Tensor, MultimodalBatch]:
    """Two prompts of one length, the image at another place in each."""
    draw = torch.Generator().manual_seed(2)
    tokens = torch.randint(3, 90, (2, features + 9), generator=draw)
    tokens[:, 0] = 1
    starts = (3, 5)
    for row, start in enumerate(starts):
        tokens[row, start : start + features] = IMAGE
    place = torch.arange(tokens.shape[1]).expand_as(tokens)
    text = TextSide(tokens, place, torch.ones_like(tokens), place, (tokens == IMAGE).long())
    spans = torch.tensor([[row, 0, row, start, features] for row, start in enumerate(starts)])
    layout = (MediaLayout(4, 4) if features == PATCHES else MediaLayout(1, features),) * 2
    media = MediaBatch(pixels, torch.arange(2), layout, spans, torch.arange(2))
    return tokens, MultimodalBatch(text, {"image": media})


PIXELS = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [{}, {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}],
    ids=["published", "whole last layer"],
)
def test_logits_equal_the_reference_and_follow_the_image(changes, tmp_path):
    theirs = reference(**changes)
    ours = to_weft(theirs, tmp_path)
    tokens, batch = prompts(PIXELS, PATCHES + ("vision_feature_select_strategy" in changes))
    expected = theirs(input_ids=tokens, pixel_values=PIXELS).logits
    bound = 1e-4 * max(1.0, expected.abs().max().item())  # float32 rounding over five layers
    assert (ours(batch).logits() - expected).abs().max() <= bound
    other = replace(batch, media={"image": replace(batch.media["image"], units=PIXELS.flip(0))})
    assert (ours(other).logits()[:, -1] - expected[:, -1]).abs().max() > 1e-3


@torch.no_grad()
def test_greedy_continuations_with_a_cache_are_those_of_the_reference(tmp_path):
    theirs = reference()
    ours = to_weft(theirs, tmp_path)
    tokens, batch = prompts(PIXELS)
    steps = 24
    expected = theirs.generate(
        input_ids=tokens, pixel_values=PIXELS, attention_mask=torch.ones_like(tokens), max_new_tokens=steps, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    decoding = Decoding(ours)
    events = generate_tokens(decoding, decoding.prefill(batch), Sampling(max_new_tokens=steps))
    said = torch.tensor([[event.token for event in step] for step in events]).T
    assert torch.equal(said, expected[:, tokens.shape[1] :])


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_the_keys_loads_the_same_model(spelling, tmp_path):
    ours = to_weft(reference(), tmp_path)
    published = LLAVA.from_weft(ours.state_dict())
    respelled = {SPELLINGS[spelling](key): value for key, value in published.items()}
    assert (set(respelled) == set(published)) == (spelling == "4.x")
    again = ours.config.build()
    assert LLAVA.load(again, respelled) == {}
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in again.state_dict().items())


def test_the_way_to_transformers_and_back_changes_no_bit(tmp_path):
    theirs = reference()
    ours = to_weft(theirs, tmp_path / "theirs")
    again = to_transformers(ours, type(theirs), tmp_path / "ours")
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in again.state_dict().items())
    back = to_weft(again, tmp_path / "back")
    assert back.config == ours.config
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in back.state_dict().items())


@pytest.mark.parametrize(
    ("size", "vocabulary", "parameters"),
    [
        ("7b", 32_000, 7_062_902_784),
        ("7b", 32_064, 7_063_427_072),
        ("13b", 32_000, 13_350_839_296),
        ("13b", 32_064, 13_351_494_656),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(size, vocabulary, parameters):
    # the published config.json leaves out what equals the library's defaults
    wide = {} if size == "7b" else {
        "hidden_size": 5120, "intermediate_size": 13_824, "num_hidden_layers": 40, "num_attention_heads": 40,
        "num_key_value_heads": 40,
    }  # fmt: skip
    text = {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "vocab_size": vocabulary, **wide}
    vision = {
        "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
        "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768, "vocab_size": 32_000,
    }  # fmt: skip
    config = read_config({"model_type": "llava", "image_token_index": 32_000, "text_config": text, "vision_config": vision})
    with torch.device("meta"):
        system = config.build()
    assert sum(p.numel() for p in system.parameters()) == parameters
    assert system.config.num_positions("image") == 576
