"""Regions as features: what is pooled, where boxes are said, pictures of unequal numbers, and the way to the tokens."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LxmertConfig
from transformers.models.lxmert.modeling_lxmert import LxmertVisualFeatureEncoder

from weft.core.box_geometry import box_geometry
from weft.core.conversation import Conversation, Media, assistant, user
from weft.core.errors import ConfigError, DataError
from weft.core.layout import MediaLayout
from weft.data.collate import collate
from weft.data.images import ImageTransform
from weft.data.processor import Processor
from weft.data.region_features import RegionFeatures
from weft.data.region_transforms import PictureRegions, RegionFeatureTransform, RegionTransform
from weft.data.tokenizers import Tokenizer
from weft.encoders.clip import ClipVision
from weft.encoders.regions import DetectedRegions, Regions
from weft.encoders.resnet import Resnet
from weft.fusion.token_concatenation import TokenConcatenation
from weft.language_models.decoder import Decoder
from weft.layers.roi_align import roi_align
from weft.projectors.attention_pooling import AttentionPooling
from weft.projectors.mlp import MLP
from weft.projectors.perceiver import Perceiver
from weft.projectors.qformer import QFormer
from weft.projectors.region_embedding import RegionEmbedding
from weft.systems.multimodal_lm import MultimodalLM, Stream

WHOLE = (0.0, 0.0, 1.0, 1.0)
BOXES = ((0.1, 0.2, 0.6, 0.9), (0.0, 0.0, 0.3, 0.4), (0.55, 0.05, 0.95, 0.35))
UNITS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PLAIN = Regions.Config(image=ClipVision.Config.tiny(), pool_size=3)


def built(config):
    torch.manual_seed(0)
    return config.build().eval()


def encode(encoder, units, *boxes):
    layout = tuple(MediaLayout.of_regions(each) for each in boxes)
    with torch.no_grad():
        return encoder(units, torch.arange(len(boxes)), layout)


@pytest.mark.parametrize("sampling", [0, 2])
@pytest.mark.parametrize("image", [ClipVision.Config.tiny(), replace(Resnet.Config.tiny(), image_size=32)])
def test_a_regions_feature_is_the_mean_of_what_roi_align_reads(image, sampling):
    encoder = built(replace(PLAIN, image=image, sampling=sampling))
    found = encode(encoder, UNITS, BOXES, BOXES)
    grid = image.layout()
    with torch.no_grad():
        features = encoder.image(UNITS, torch.arange(2), (grid, grid)).values
    cells = features.transpose(1, 2).unflatten(2, (grid.height, grid.width))
    rows = torch.tensor([[picture, *box] for picture in (0, 1) for box in BOXES])
    expected = roi_align(cells, rows, 3, sampling).mean((2, 3)).unflatten(0, (2, 3))
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-5)  # float32, another order of sums
    assert found.valid is None


def test_permuting_the_regions_permutes_the_features():
    encoder = built(Regions.Config.tiny())
    there, back = encode(encoder, UNITS[:1], BOXES).values, encode(encoder, UNITS[:1], BOXES[::-1]).values
    torch.testing.assert_close(there.flip(1), back, rtol=0, atol=1e-6)  # float32
    assert (there - back).abs().max() > 0.1


def test_pictures_may_have_unequal_numbers_of_regions():
    encoder = built(Regions.Config.tiny())
    found = encode(encoder, UNITS, BOXES, BOXES[:1])
    assert found.valid.tolist() == [[True] * 3, [True, False, False]]
    assert not found.values[1, 1:].any()
    alone = encode(encoder, UNITS[1:], BOXES[:1])
    torch.testing.assert_close(found.values[1, :1], alone.values[0], rtol=0, atol=1e-5)
    assert alone.valid is None


def test_one_token_a_region_whatever_the_number():
    found = encode(built(PLAIN), UNITS, BOXES, BOXES[:1])
    projector = built_projector(MLP.Config(), found.values.shape[-1])
    with torch.no_grad():
        tokens = projector(found)
    assert tokens.item.tolist() == [0, 0, 0, 1]
    assert [projector.config.num_tokens(layout) for layout in found.layout] == [3, 1]


@pytest.mark.parametrize("projector", [Perceiver.Config.tiny(), QFormer.Config.tiny(), AttentionPooling.Config.tiny()])
def test_what_reads_all_regions_together_sees_those_of_its_own_picture_alone(projector):
    encoder = built(PLAIN)
    resampler = built_projector(projector, encoder.config.output_width)
    for parameter in resampler.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    with torch.no_grad():
        together = resampler(encode(encoder, UNITS, BOXES, BOXES[:1])).values[-projector.num_tokens(MediaLayout(1, 1)) :]
        alone = resampler(encode(encoder, UNITS[1:], BOXES[:1])).values
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5 * max(1.0, float(alone.abs().max())))


def built_projector(config, input_width, output_width=24):
    torch.manual_seed(1)
    return config.build(input_width, output_width).eval()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("corners", (0.1, 0.1, 0.5, 0.5)),
        ("corners_area", (0.1, 0.1, 0.5, 0.5, 0.16)),
        ("corners_size", (0.1, 0.1, 0.5, 0.5, 0.4, 0.4)),
    ],
)
def test_the_numbers_of_a_box_are_the_published_ones(kind, expected):
    # pixels (64, 48, 320, 240) of a picture of 640 x 480
    box = torch.tensor([64 / 640, 48 / 480, 320 / 640, 240 / 480])
    torch.testing.assert_close(box_geometry(box, kind), torch.tensor(expected), rtol=0, atol=1e-7)
    assert box_geometry(torch.tensor(WHOLE), kind).tolist() == [*WHOLE, 1.0, 1.0][: len(expected)]


def test_box_numbers_stand_beside_the_feature_or_are_projected_and_added():
    config = DetectedRegions.Config(feature_width=8, num_regions=3, geometry="corners_size")
    units = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(2))
    beside = encode(built(config), units, BOXES).values
    assert config.output_width == 14 and torch.equal(beside[..., :8], units)
    assert torch.equal(beside[0, :, 8:12], torch.tensor(BOXES))
    added = built(replace(config, joined="added"))
    found = encode(added, units, BOXES).values
    by_hand = units[0] + beside[0, :, 8:] @ added.box.projection.weight.T + added.box.projection.bias
    torch.testing.assert_close(found[0], by_hand, rtol=0, atol=1e-6)


def test_oscars_regions_are_2054_numbers():
    assert DetectedRegions.Config(geometry="corners_size").output_width == 2054


def test_the_embedding_of_lxmert_is_that_of_transformers():
    reference = LxmertVisualFeatureEncoder(LxmertConfig(hidden_size=24, num_attention_heads=4, visual_feat_dim=8)).eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, mean=0.3, std=0.5)
    names = {"visn_fc": "feature", "visn_layer_norm": "norm", "box_fc": "box", "box_layer_norm": "box_norm"}
    state = {f"{names[k.split('.')[0]]}.{k.split('.')[1]}": v for k, v in reference.state_dict().items()}
    encoder = built(DetectedRegions.Config(feature_width=8, num_regions=3, geometry="corners"))
    projector = built_projector(RegionEmbedding.Config(), encoder.config.output_width)
    projector.load_state_dict(state)
    units = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found = projector(encode(encoder, units, BOXES, BOXES[::-1])).values
        expected = reference(units, torch.tensor((BOXES, BOXES[::-1]))).flatten(0, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_embedding_of_vilbert_is_the_normalised_sum():
    projector = built_projector(RegionEmbedding.Config(num_box_numbers=5, normalised="together"), 13)
    encoder = built(DetectedRegions.Config(feature_width=8, num_regions=3, geometry="corners_area"))
    features = encode(encoder, torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(4)), BOXES)
    with torch.no_grad():
        found = projector(features).values
        for token, x in zip(found, features.values[0], strict=True):
            total = (
                projector.feature.weight @ x[:8] + projector.feature.bias + projector.box.weight @ x[8:] + projector.box.bias
            )
            by_hand = (total - total.mean()) / total.var(unbiased=False).sqrt()
            torch.testing.assert_close(token, by_hand, rtol=0, atol=1e-5)


def test_in_bfloat16_values_follow_the_exact_ones():
    encoder = built(Regions.Config.tiny())
    exact = encode(encoder, UNITS, BOXES, BOXES[:2]).values
    found = encode(encoder.bfloat16(), UNITS.bfloat16(), BOXES, BOXES[:2]).values
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).abs().mean() < 0.05 * exact.abs().mean()  # 8 bits of mantissa, two layers


TOKENIZER = Tokenizer.train(["What is there? A red cat on a mat."] * 4, 330, ("<pad>", "<s>", "</s>", "<regions>"))


def system_of(encoder):
    stream = Stream.Config(encoder=encoder, projector=MLP.Config())
    fusion = TokenConcatenation.Config(streams=("regions",))
    language_model = replace(Decoder.Config.tiny(), vocabulary=TOKENIZER.vocabulary)
    return MultimodalLM.Config(language_model=language_model, streams={"regions": stream}, fusions=(fusion,))


def asked(source, name):
    return Conversation((user(Media(source, "regions"), "What is there?"), assistant("A cat.")), id=name)


def detected(count, seed=0):
    draw = np.random.default_rng(seed)
    boxes = np.array(BOXES[:count], np.float32)
    zeros = np.zeros(count, np.int64)
    features = draw.standard_normal((count, 16)).astype(np.float32)
    return RegionFeatures("a", (64, 48), boxes, features, zeros, zeros / 1.0, zeros, zeros / 1.0)


PICTURE = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("encoder", "transform", "sources", "positions"),
    [
        (
            Regions.Config.tiny(),
            RegionTransform(view=ImageTransform(size=32, pad_to_square=True)),
            [PictureRegions(PICTURE, BOXES), PictureRegions(PICTURE, BOXES[:1])],
            [3, 1],
        ),
        (
            DetectedRegions.Config.tiny(),
            RegionFeatureTransform(feature_width=16, num_regions=4, global_region=True),
            [detected(3), detected(1)],
            [4, 2],
        ),
    ],
    ids=["pooled", "detected"],
)
def test_conversations_about_regions_reach_the_language_model(encoder, transform, sources, positions):
    config = system_of(encoder)
    processor = Processor.Config(template="vicuna_v1", transforms={"regions": transform}).build(TOKENIZER, config)
    samples = [processor.encode(asked(source, str(number))) for number, source in enumerate(sources)]
    assert [sample.media["regions"][0].spans[0][2] for sample in samples] == positions
    torch.manual_seed(0)
    system = config.build().eval()
    with torch.no_grad():
        together = system(collate(samples)).hidden
        for row, sample in enumerate(samples):
            alone = system(collate([sample])).hidden
            torch.testing.assert_close(together[row, : len(sample)], alone[0], rtol=0, atol=1e-5)
        packed = system(collate([samples])).hidden
    torch.testing.assert_close(packed[0, : len(samples[0])], together[0, : len(samples[0])], rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampling", [0, 2])
def test_what_regions_cost_is_counted_without_computing(sampling):
    encoder = replace(Regions.Config.tiny(), sampling=sampling)
    with torch.device("meta"):
        built_on_meta = encoder.build()
        layout = MediaLayout.of_regions(BOXES)
        found = built_on_meta(torch.empty(1, *encoder.unit_shape), torch.zeros(1, dtype=torch.long, device="cpu"), (layout,))
    assert found.values.shape == (1, 3, encoder.output_width)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ConfigError, match="class token"):
        replace(PLAIN, image=replace(ClipVision.Config.tiny(), keep_class_token=True))
    with pytest.raises(ConfigError, match="one bin"):
        replace(PLAIN, pool_size=0)
    with pytest.raises(ConfigError, match="or more"):
        DetectedRegions.Config(num_regions=0)
    with pytest.raises(DataError, match="no boxes in its layout"):
        built(PLAIN)(UNITS, torch.arange(2), (MediaLayout(4, 4),) * 2)
    with pytest.raises(DataError, match="for 3 boxes"):
        encode(built(DetectedRegions.Config.tiny()), torch.zeros(1, 2, 16), BOXES)
    with pytest.raises(ConfigError, match="side_by_side"):
        RegionEmbedding.Config().build(4, 8)
