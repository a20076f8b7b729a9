"""SigLIP against `transformers`, from random weights through the real key map."""

import dataclasses

import pytest
import torch
from reference_models import assert_close, randomise, to_transformers, to_weft

from weft.core.batch import MediaBatch, MultimodalBatch, SampleRef, TextSide
from weft.core.layout import MediaLayout
from weft.encoders.siglip import SiglipText, SiglipVision
from weft.systems.dual_encoder import DualEncoder

transformers = pytest.importorskip("transformers")

CONTEXT = 10
VISION = {
    "hidden_size": 48,
    "intermediate_size": 90,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 30,
    "patch_size": 7,
}
TEXT = {
    "hidden_size": 48, "intermediate_size": 90, "num_hidden_layers": 2, "num_attention_heads": 3, "vocab_size": 50,
    "max_position_embeddings": CONTEXT, "projection_size": 48, "bos_token_id": None, "eos_token_id": 1,
}  # fmt: skip
PIXELS = torch.randn(3, 3, 30, 30, generator=torch.Generator().manual_seed(7))
GRID = (MediaLayout(4, 4),) * 3


def whole_model() -> transformers.SiglipModel:
    config = transformers.SiglipConfig(vision_config=VISION, text_config=TEXT)
    return randomise(transformers.SiglipModel(config))


def texts() -> tuple[torch.Tensor, TextSide]:
    """Three texts of 6, 3 and 7 tokens: padded to the context as the reference takes them, and Weft's, with padding marked."""
    tokens = torch.randint(2, 50, (3, CONTEXT), generator=torch.Generator().manual_seed(8))
    length = torch.tensor([6, 3, 7])
    place = torch.arange(CONTEXT).expand(3, CONTEXT)
    padded = tokens.masked_fill(place >= length[:, None], 1)
    place = place[:, :7]
    real = (place < length[:, None]).long()
    return padded, TextSide(tokens[:, :7] * real, place, real, place * real, torch.zeros_like(place))


def forward(encoder: SiglipVision) -> torch.Tensor:
    return encoder(PIXELS, torch.arange(3), GRID).values


@pytest.mark.parametrize("spelling", ["", "vision_model."], ids=["version 5", "version 4"])
def test_image_tower_equals_the_reference_in_both_spellings(tmp_path, spelling):
    theirs = randomise(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION)))
    ours = to_weft(theirs, tmp_path, rename=lambda key: spelling + key)
    with torch.no_grad():
        expected = theirs(PIXELS, output_hidden_states=True)
        assert_close(forward(ours), expected.hidden_states[-2])
        assert_close(ours.pool(PIXELS), expected.pooler_output)
        ours.config = dataclasses.replace(ours.config, feature_layer="normed")
        assert_close(forward(ours), expected.last_hidden_state)


def test_image_tower_without_its_pooling_head(tmp_path):
    theirs = randomise(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION, vision_use_head=False)))
    ours = to_weft(theirs, tmp_path / "theirs")
    assert ours.pooling is None
    with torch.no_grad():
        assert_close(forward(ours), theirs(PIXELS, output_hidden_states=True).hidden_states[-2])
    again = to_transformers(ours, transformers.SiglipVisionModel, tmp_path / "ours")
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in again.state_dict().items())


def test_a_head_in_the_file_is_dropped_with_its_reason_where_the_config_has_none():
    from weft.checkpoints.siglip import SIGLIP_VISION, read_vision

    whole = whole_model()
    config = dataclasses.replace(read_vision(whole.config.vision_config.to_dict()), pooling_head=False)
    tower = config.build().eval()
    dropped = SIGLIP_VISION.key_map(config).load(tower, {k: v.detach() for k, v in whole.state_dict().items()})
    assert "no pooling head" in dropped["vision_model.head.probe"]
    with torch.no_grad():
        assert_close(forward(tower), whole.vision_model(PIXELS, output_hidden_states=True).hidden_states[-2])


@pytest.mark.parametrize("spelling", ["", "text_model."], ids=["version 5", "version 4"])
def test_text_tower_pads_to_the_context_and_pools_at_its_last_position(tmp_path, spelling):
    theirs = randomise(transformers.SiglipTextModel(transformers.SiglipTextConfig(**TEXT)))
    ours = to_weft(theirs, tmp_path, rename=lambda key: spelling + key)
    padded, text = texts()
    place = torch.arange(CONTEXT).expand(3, CONTEXT)
    whole = TextSide(padded, place, torch.ones_like(place), place, torch.zeros_like(place))
    with torch.no_grad():
        expected = theirs(input_ids=padded).pooler_output
        assert_close(ours(text), expected)
        assert_close(ours(whole), expected)


def test_similarity_logits_equal_the_reference(tmp_path):
    theirs = whole_model()
    ours = to_weft(theirs, tmp_path)
    padded, text = texts()
    media = MediaBatch(PIXELS, torch.arange(3), GRID, torch.empty(0, 5, dtype=torch.long), torch.arange(3))
    samples = tuple(SampleRef(row, 1, "test", str(row)) for row in range(3))
    with torch.no_grad():
        expected = theirs(input_ids=padded, pixel_values=PIXELS)
        found = ours(MultimodalBatch(text, {"image": media}, samples)).embeddings
        logits = ours.logit_scale.exp() * found["media"] @ found["text"].T + ours.logit_bias
        assert_close(logits, expected.logits_per_image)


@pytest.mark.parametrize("part", ["SiglipVisionModel", "SiglipTextModel", "SiglipModel"])
def test_what_weft_writes_the_reference_loads_without_a_word_about_keys(tmp_path, part):
    cls = getattr(transformers, part)
    whole = whole_model()
    theirs = {"SiglipVisionModel": whole.vision_model, "SiglipTextModel": whole.text_model, "SiglipModel": whole}[part]
    again = to_transformers(to_weft(theirs, tmp_path / "theirs"), cls, tmp_path / "ours")
    expected = theirs.state_dict()
    assert expected.keys() == again.state_dict().keys()
    assert all(torch.equal(value, expected[key]) for key, value in again.state_dict().items())


def test_a_hub_config_of_version_4_gives_the_published_size():
    from weft.checkpoints.siglip import SIGLIP

    shape = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    saved = {"model_type": "siglip", "text_config": shape, "vision_config": {**shape, "image_size": 384, "patch_size": 14}}
    config = SIGLIP.read_config(saved)
    assert config.media == SiglipVision.Config.sizes()["so400m-14-384"]
    assert config.text == SiglipText.Config.sizes()["so400m-14-384"]
    assert SIGLIP.read_config(SIGLIP.write_config(config)) == config


@pytest.mark.parametrize(
    ("size", "vision", "headless", "text", "whole"),
    [
        ("b-16-224", 92_884_224, 85_797_120, 110_271_744, 203_155_970),
        ("l-16-256", 315_956_224, 303_361_024, 336_194_560, 652_150_786),
        ("so400m-14-384", 428_225_600, 412_987_248, 449_734_896, 877_960_498),
    ],
)
def test_published_sizes_have_the_published_parameters(size, vision, headless, text, whole):
    with torch.device("meta"):
        media, language = SiglipVision.Config.sizes()[size], SiglipText.Config.sizes()[size]
        system = DualEncoder.Config(media=media, text=language, initial_scale=10.0, initial_bias=-10.0).build()
        features_only = dataclasses.replace(media, pooling_head=False).build()
    assert sum(p.numel() for p in system.media.parameters()) == vision
    assert sum(p.numel() for p in features_only.parameters()) == headless
    assert sum(p.numel() for p in system.text.parameters()) == text
    assert sum(p.numel() for p in system.parameters()) == whole
