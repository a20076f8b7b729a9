"""IDEFICS against `transformers`, from random weights through the real key map; the counts of the published sizes."""

import pytest
import torch
from reference_models import randomise, to_transformers, to_weft

from weft.core.batch import MediaBatch, MultimodalBatch, TextSide
from weft.core.layout import MediaLayout
from weft.inference.generate import Decoding
from weft.recipes.catalogue import recipe
from weft.systems.accounting import num_parameters, without_values

transformers = pytest.importorskip("transformers")

IMAGE = 41  # an added token
# by row, the picture that each of ten tokens sees; row 1 has one picture
SEES = torch.tensor([[-1, 0, 0, 0, 1, 1, 2, 2, 2, -1], [-1, -1, -1, 0, 0, 0, 0, 0, 0, 0]])
TAGS = [(0, 1), (0, 4), (0, 6), (1, 3)]
PIXELS = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(3))


def reference(gate, **changes):
    options = {
        "vocab_size": 40, "additional_vocab_size": 3, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 4, "cross_layer_interval": 2, "qk_layer_norms": True, "use_resampler": True,
        "vision_config": {"embed_dim": 48, "image_size": 28, "intermediate_size": 96, "patch_size": 7, "num_hidden_layers": 2,
                          "num_attention_heads": 3},
        "perceiver_config": {"resampler_n_latents": 4, "resampler_depth": 2, "resampler_n_heads": 2, "resampler_head_dim": 8,
                             "qk_layer_norms_perceiver": True},
    } | changes  # fmt: skip
    config = transformers.IdeficsConfig(attn_implementation="eager", **options)
    model = randomise(transformers.IdeficsForVisionText2Text(config))
    for name, parameter in model.named_parameters():
        if "alpha" in name:
            parameter.data.fill_(gate)
    return model


def prompts(pixels=PIXELS):
    tokens = torch.randint(3, 40, (2, 10), generator=torch.Generator().manual_seed(2))
    for row, place in TAGS:
        tokens[row, place] = IMAGE
    place = torch.arange(10).expand(2, 10)
    visible = {"image": torch.stack((SEES.clamp_min(0), SEES), -1)}
    side = TextSide(tokens, place, torch.ones_like(tokens), place, (tokens == IMAGE).long(), visible=visible)
    spans = torch.tensor([[item, 0, row, start, 1] for item, (row, start) in enumerate(TAGS)])
    layout = (MediaLayout(1, 17),) * 4
    return MultimodalBatch(side, {"image": MediaBatch(pixels, torch.arange(4), layout, spans, torch.tensor([0, 0, 0, 1]))})


def theirs_of(model, batch, pixels=PIXELS):
    padded = torch.zeros(2, 3, 3, 28, 28)
    padded[0], padded[1, 0] = pixels[:3], pixels[3]
    mask = (SEES[:, :, None] == torch.arange(3)).long()
    return model(input_ids=batch.main.tokens, pixel_values=padded, image_attention_mask=mask, use_cache=False).logits


@torch.no_grad()
@pytest.mark.parametrize("gate", [0.0, 0.5])
@pytest.mark.parametrize("alpha", ["float", "vector"])
def test_logits_equal_the_reference_and_follow_the_pictures(alpha, gate, tmp_path):
    theirs = reference(gate, alpha_type=alpha)
    ours = to_weft(theirs, tmp_path)
    batch = prompts()
    expected, found = theirs_of(theirs, batch), ours(batch).logits()
    bound = 1e-5 * max(1.0, expected.abs().max().item())
    assert (found - expected).abs().max() <= bound
    other = ours(prompts(PIXELS.flip(0))).logits()
    if gate:
        assert (other - found).abs().max() > 1e-3
    else:
        assert torch.equal(other, found)


@torch.no_grad()
def test_decoding_behind_a_cache_says_the_same(tmp_path):
    theirs = reference(0.5)
    ours, batch = to_weft(theirs, tmp_path), prompts()
    expected = theirs_of(theirs, batch)[:, -1]
    assert (Decoding(ours).prefill(batch) - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())


def test_the_way_to_transformers_and_back_changes_no_bit(tmp_path):
    theirs = reference(0.5, alpha_type="vector")
    ours = to_weft(theirs, tmp_path / "theirs")
    again = to_transformers(ours, type(theirs), tmp_path / "ours")
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize(
    ("size", "total", "blocks"),
    [("9b", 8_929_679_632, 1_434_519_568), ("80b", 79_967_843_624, 13_925_422_120)],
)
def test_published_sizes_have_the_published_number_of_parameters(size, total, blocks):
    with without_values():
        system = recipe("idefics", size).system.build()
    assert num_parameters(system) == total
    assert num_parameters(system.stream("image").encoder) == 630_766_080
    assert num_parameters(system.stream("image").projector) == 125_961_984
    slots = {i: b.before_attention for i, b in enumerate(system.language_model.blocks) if num_parameters(b.before_attention)}
    assert list(slots) == list(range(0, len(system.language_model.blocks), 4))
    assert sum(map(num_parameters, slots.values())) == blocks
