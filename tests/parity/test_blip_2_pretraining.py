"""BLIP-2's first stage against `transformers`: similarities and matches from random weights through the real key map."""

import pytest
import tiny_pairs
import torch
from reference_models import assert_close, randomise
from tiny_pairs import FEATURE_WIDTH, FEATURES, LENGTHS, NUM_QUERIES, VOCABULARY, WIDTH, pairs, tokens

from weft.checkpoints.blip_2_pretraining import transformers_map
from weft.checkpoints.weight_files import weights
from weft.core.media import MediaFeatures
from weft.core.query_text_rules import bidirectional
from weft.objectives.image_text_contrastive import compared, own_pairs

transformers = pytest.importorskip("transformers")

PIXELS = torch.randn(len(LENGTHS), 3, 24, 24, generator=torch.Generator().manual_seed(3))
VALID = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
BEYOND = ("word_head.", "temperature", "streams.image.encoder.")  # what the reference does not have, and the encoder


@pytest.fixture(scope="module")
def both():
    """The reference and ours with its weights, and a batch with what its encoder saw."""
    vision = {
        "hidden_size": FEATURE_WIDTH, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 24, "patch_size": 8,
    }  # fmt: skip
    reader = {
        "hidden_size": WIDTH, "intermediate_size": 80, "num_hidden_layers": 4, "num_attention_heads": 3,
        "vocab_size": VOCABULARY, "max_position_embeddings": 12, "encoder_hidden_size": FEATURE_WIDTH,
        "use_qformer_text_input": True,
    }  # fmt: skip
    config = transformers.Blip2Config(
        vision_config=vision, qformer_config=reader, num_query_tokens=NUM_QUERIES, image_text_hidden_size=16
    )
    theirs = randomise(transformers.Blip2ForImageTextRetrieval(config))
    ours = tiny_pairs.system()
    state = {key: value for key, value in weights(theirs).items() if not key.startswith("vision_model.")}
    mapped = transformers_map(ours.config).to_weft(state)
    expected = {name for name in ours.state_dict() if not name.startswith(BEYOND)}
    assert mapped.keys() == expected, "every tensor but those of the encoder and of the head over words"
    ours.load_state_dict({**ours.state_dict(), **mapped})
    batch, _ = pairs()
    with torch.no_grad():
        seen = theirs.vision_model(PIXELS).last_hidden_state
    assert seen.shape[1] != FEATURES
    media = batch.media["image"]
    return theirs, ours, batch, {"image": MediaFeatures(seen, media.unit_item, media.layout)}


@torch.no_grad()
def test_similarities_are_the_references(both):
    theirs, ours, batch, media = both
    expected = theirs(PIXELS, tokens().masked_fill(~VALID, 0), VALID.long()).logits_per_image
    comparison = compared(ours, batch, media)
    assert_close(comparison.told * ours.temperature, expected)
    assert_close(comparison.shown * ours.temperature, expected.T)
    assert expected.std() > 1e-2


@torch.no_grad()
def test_matches_are_the_references_for_true_and_false_pairs(both):
    theirs, ours, batch, media = both
    false = torch.tensor([[0, 3], [1, 0], [2, 2], [3, 1], [4, 0]])
    for examples in (own_pairs(batch), false):
        text, medium = examples.unbind(1)
        expected = theirs(
            PIXELS[medium], tokens().masked_fill(~VALID, 0)[text], VALID[text].long(), use_image_text_matching_head=True
        )
        asked = batch.arrange(examples, *bidirectional(0, batch.main.segment > 0).queries[:2])
        output = ours(asked, media)
        assert_close(output.heads["matching"](output.embeddings["queries"]).mean(1), expected.logits_per_image)
