"""CLIP against `transformers`, from random weights through the real key map."""

import dataclasses

import pytest
import torch
from reference_models import assert_close, randomise, to_transformers, to_weft

from weft.core.batch import MediaBatch, MultimodalBatch, SampleRef, TextSide
from weft.core.layout import MediaLayout
from weft.encoders.clip import ClipText, ClipVision
from weft.systems.dual_encoder import DualEncoder

transformers = pytest.importorskip("transformers")

END = 49
VISION = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 30,
    "patch_size": 7,
}
TEXT = {
    "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": END + 4,
    "max_position_embeddings": 12, "bos_token_id": END - 1, "eos_token_id": END,
}  # fmt: skip
PIXELS = torch.randn(3, 3, 30, 30, generator=torch.Generator().manual_seed(7))
GRID = (MediaLayout(4, 4),) * 3


def whole_model() -> transformers.CLIPModel:
    config = transformers.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=20)
    return randomise(transformers.CLIPModel(config))


def texts() -> tuple[torch.Tensor, torch.Tensor, TextSide]:
    """Three texts of 7, 4 and 9 tokens, end-of-text last and as padding: ids, mask, and Weft's form."""
    tokens = torch.randint(0, END - 1, (3, 9), generator=torch.Generator().manual_seed(8))
    length = torch.tensor([7, 4, 9])
    place = torch.arange(9).expand(3, 9)
    tokens = tokens.masked_fill(place >= length[:, None] - 1, END)
    real = (place < length[:, None]).long()
    return tokens, real, TextSide(tokens, order=place, segment=real, positions=place, modality=torch.zeros_like(tokens))


def forward(encoder: ClipVision) -> torch.Tensor:
    return encoder(PIXELS, torch.arange(3), GRID).values


@pytest.mark.parametrize("spelling", ["", "vision_model."], ids=["version 5", "version 4"])
def test_image_tower_equals_the_reference_in_both_spellings(tmp_path, spelling):
    theirs = randomise(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION)))
    ours = to_weft(theirs, tmp_path, rename=lambda key: spelling + key)
    with torch.no_grad():
        expected = theirs(PIXELS, output_hidden_states=True)
        for layer in (-2, -1, 0):
            ours.config = dataclasses.replace(ours.config, feature_layer=layer)
            assert_close(forward(ours), expected.hidden_states[layer][:, 1:])
        assert_close(ours.pool(PIXELS), expected.pooler_output)
        ours.config = dataclasses.replace(ours.config, feature_layer=-2, keep_class_token=True)
        assert_close(forward(ours), expected.hidden_states[-2])


@pytest.mark.parametrize("spelling", ["", "text_model."], ids=["version 5", "version 4"])
def test_text_tower_pools_at_the_end_of_text_token_like_the_reference(tmp_path, spelling):
    theirs = randomise(transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT)))
    ours = to_weft(theirs, tmp_path, rename=lambda key: spelling + key)
    tokens, mask, text = texts()
    with torch.no_grad():
        expected = theirs(input_ids=tokens, attention_mask=mask).pooler_output
        assert_close(ours(text), expected)


def test_similarity_logits_equal_the_reference(tmp_path):
    theirs = whole_model()
    ours = to_weft(theirs, tmp_path)
    tokens, mask, text = texts()
    media = MediaBatch(PIXELS, torch.arange(3), GRID, torch.empty(0, 5, dtype=torch.long), torch.arange(3))
    samples = tuple(SampleRef(row, 1, "test", str(row)) for row in range(3))
    with torch.no_grad():
        expected = theirs(input_ids=tokens, attention_mask=mask, pixel_values=PIXELS)
        found = ours(MultimodalBatch(text, {"image": media}, samples)).embeddings
        assert_close(ours.logit_scale.exp() * found["media"] @ found["text"].T, expected.logits_per_image)
        assert_close(found["media"], expected.image_embeds)


@pytest.mark.parametrize("part", ["CLIPVisionModel", "CLIPTextModel", "CLIPModel"])
def test_what_weft_writes_the_reference_loads_without_a_word_about_keys(tmp_path, part):
    cls = getattr(transformers, part)
    whole = whole_model()
    theirs = {"CLIPVisionModel": whole.vision_model, "CLIPTextModel": whole.text_model, "CLIPModel": whole}[part]
    ours = to_weft(theirs, tmp_path / "theirs")
    again = to_transformers(ours, cls, tmp_path / "ours")
    expected = theirs.state_dict()
    assert expected.keys() == again.state_dict().keys()
    assert all(torch.equal(value, expected[key]) for key, value in again.state_dict().items())
    if part != "CLIPVisionModel":
        assert getattr(again.config, "text_config", again.config).eos_token_id == END


def test_one_tower_is_read_from_the_file_of_the_whole_model(tmp_path):
    from weft.checkpoints.clip import CLIP_TEXT, CLIP_VISION, read_text, read_vision

    whole = whole_model()
    state = {key: value.detach() for key, value in whole.state_dict().items()}
    state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]  # as files of version 4 have it
    vision, text = (
        read_vision(whole.config.vision_config.to_dict()).build(),
        read_text(whole.config.text_config.to_dict()).build(),
    )
    dropped = CLIP_VISION.key_map(vision.config).load(vision, state)
    assert "vision_model.embeddings.position_ids" in dropped and "text_projection.weight" in dropped
    del state["vision_model.embeddings.position_ids"]
    CLIP_TEXT.key_map(text.config).load(text, state)
    with torch.no_grad():
        assert_close(vision.eval().pool(PIXELS), whole.vision_model(PIXELS).pooler_output)


def test_a_hub_config_of_version_4_gives_the_published_size():
    from weft.checkpoints.clip import CLIP

    saved = {  # what the file leaves out has the published default; 2 is how old files name the end-of-text token
        "model_type": "clip",
        "projection_dim": 768,
        "text_config": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "eos_token_id": 2},
        "vision_config": {
            "hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24, "intermediate_size": 4096,
            "image_size": 336, "patch_size": 14, "dropout": 0.0,
        },
    }  # fmt: skip
    config = CLIP.read_config(saved)
    assert config.media == ClipVision.Config.sizes()["l-14-336"]
    assert config.text == ClipText.Config.sizes()["l-14-336"]
    assert CLIP.read_config(CLIP.write_config(config)) == config


@pytest.mark.parametrize(
    ("size", "vision", "text", "width", "whole"),
    [
        ("b-32", 87_456_000, 63_165_952, 512, 151_277_313),
        ("b-16", 85_799_424, 63_165_952, 512, 149_620_737),
        ("l-14", 303_179_776, 123_060_480, 768, 427_616_513),
        ("l-14-336", 303_507_456, 123_060_480, 768, 427_944_193),
    ],
)
def test_published_sizes_have_the_published_parameters(size, vision, text, width, whole):
    with torch.device("meta"):
        media, language = ClipVision.Config.sizes()[size], ClipText.Config.sizes()[size]
        system = DualEncoder.Config(media=media, text=language, embedding_width=width).build()
    assert sum(p.numel() for p in system.media.parameters()) == vision
    assert sum(p.numel() for p in system.text.parameters()) == text
    assert sum(p.numel() for p in system.parameters()) == whole
