"""Mixture of Features: what each encoder sees, and how their features are put together."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from weft.checkpoints.checkpoint_format import checkpoint_formats
from weft.checkpoints.weight_files import weights, write_weights
from weft.core.errors import ConfigError
from weft.core.layout import MediaLayout
from weft.data import images
from weft.encoders import mixture
from weft.encoders.clip import ClipVision
from weft.encoders.dinov2 import Dinov2
from weft.encoders.mixture import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, Mixture
from weft.encoders.resnet import Resnet
from weft.fusion.token_concatenation import TokenConcatenation
from weft.language_models.decoder import Decoder
from weft.projectors.interleaved import Interleaved
from weft.projectors.mlp import MLP
from weft.recipes.starting_weights import starting_weights
from weft.systems.multimodal_lm import MultimodalLM, Stream

TINY = Mixture.Config.tiny()
PICTURES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
CLIP_PIXELS = images.ImageTransform(size=32).normalise(PICTURES)
IMAGENET_PIXELS = images.ImageTransform(size=32, mean=IMAGENET_MEAN, std=IMAGENET_STD).normalise(PICTURES)


def build(**changes) -> Mixture:
    """The same weights under every config: the seed is fixed, and the changes here name no size."""
    torch.manual_seed(0)
    return replace(TINY, **changes).build().eval()


def features(encoder, units: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return encoder(units, torch.arange(len(units)), (encoder.config.layout(),) * len(units)).values


def test_each_encoder_sees_the_picture_under_its_own_mean_and_deviation():
    both = build()
    torch.testing.assert_close(both.for_second(CLIP_PIXELS), IMAGENET_PIXELS, rtol=0, atol=1e-5)  # one rounding more
    first, second = features(both, CLIP_PIXELS).split((64, 64), -1)
    assert torch.equal(first, features(both.first, CLIP_PIXELS))
    torch.testing.assert_close(second, features(both.second, IMAGENET_PIXELS), rtol=0, atol=1e-4)
    assert (second - features(both.second, CLIP_PIXELS)).abs().max() > 1e-2


def test_with_one_normalisation_for_both_the_pixels_pass_untouched_as_in_the_published_code():
    both = build(second_mean=CLIP_MEAN, second_std=CLIP_STD)
    assert both.for_second(CLIP_PIXELS) is CLIP_PIXELS
    second = features(both, CLIP_PIXELS)[..., 64:]
    assert torch.equal(second, features(both.second, CLIP_PIXELS))


def test_pictures_that_come_under_another_normalisation_are_taken_too():
    both = build(mean=images.HALF, std=images.HALF)
    units = images.ImageTransform(size=32, mean=images.HALF, std=images.HALF).normalise(PICTURES)
    torch.testing.assert_close(both.for_second(units), IMAGENET_PIXELS, rtol=0, atol=1e-5)


def test_the_mean_and_deviation_of_clip_are_those_of_the_image_transform():
    assert (mixture.CLIP_MEAN, mixture.CLIP_STD) == (images.CLIP_MEAN, images.CLIP_STD)


def test_added_features_with_alpha_0_are_the_first_encoder_bit_for_bit_and_with_1_the_second():
    none, whole = build(alpha=0.0), build(alpha=1.0)
    assert torch.equal(features(none, CLIP_PIXELS), features(none.first, CLIP_PIXELS))
    second = features(whole.second, whole.for_second(CLIP_PIXELS))
    assert torch.equal(features(whole, CLIP_PIXELS), second)
    torch.nn.init.normal_(whole.first.position_embedding)
    assert torch.equal(features(whole, CLIP_PIXELS), second)


def test_alpha_is_the_share_of_the_second_encoder():
    sides = features(build(), CLIP_PIXELS)
    added = features(build(alpha=0.25), CLIP_PIXELS)
    torch.testing.assert_close(added, 0.75 * sides[..., :64] + 0.25 * sides[..., 64:], rtol=0, atol=1e-6)  # float32


def test_added_at_alpha_0_a_mixture_gives_the_projector_the_tokens_of_the_plain_model_bit_for_bit():
    """Additive at alpha 0 is LLaVA: the same encoder, projector and tokens."""
    added = build(alpha=0.0)
    torch.manual_seed(1)
    projector = MLP.Config().build(added.config.output_width, 48)
    item, layout = torch.arange(2), (added.config.layout(),) * 2
    with torch.no_grad():
        tokens = projector(added(CLIP_PIXELS, item, layout))
        plain = projector(added.first(CLIP_PIXELS, item, layout))
    assert torch.equal(tokens.values, plain.values) and torch.equal(tokens.item, plain.item)


@pytest.mark.parametrize(
    ("size", "grid", "tokens", "clip"), [("l-14", 16, 512, 303_179_776), ("l-14-336", 24, 1152, 303_507_456)]
)
def test_the_published_pairs_give_twice_the_tokens_of_their_grid(size, grid, tokens, clip):
    encoder = Mixture.Config.sizes()[size]
    assert encoder.layout() == MediaLayout(grid, grid) and encoder.output_width == 2048
    stream = Stream.Config(encoder=encoder, projector=Interleaved.Config())
    fusion = TokenConcatenation.Config()
    system = MultimodalLM.Config(language_model=Decoder.Config.tiny(), streams={"image": stream}, fusions=(fusion,))
    assert system.num_positions("image") == tokens
    with torch.device("meta"):
        built = stream.build(4096)
    assert sum(p.numel() for p in built.encoder.parameters()) == clip + 304_367_616
    assert sum(p.numel() for p in built.projector.parameters()) == 2 * 20_979_712


SMALL_CLIP, SMALL_DINOV2 = ClipVision.Config.tiny(), Dinov2.Config.tiny()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"second": replace(SMALL_DINOV2, image_size=40)}, "give both the same image size"),
        ({"second": replace(SMALL_DINOV2, patch_size=4)}, "at which their grids agree"),
        ({"second": replace(SMALL_DINOV2, width=32), "alpha": 0.5}, "leave alpha out"),
        ({"alpha": 1.5}, "from 0 to 1"),
        ({"second_std": (0.2, 0.0, 0.2)}, "above 0"),
    ],
)
def test_encoders_that_do_not_go_together_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)


def test_features_of_other_widths_go_side_by_side():
    both = replace(TINY, second=replace(SMALL_DINOV2, width=32)).build().eval()
    assert features(both, CLIP_PIXELS).shape == (2, 16, 96) and both.config.output_width == 96


def test_each_encoder_is_filled_from_its_own_published_folder(tmp_path):
    trained, fresh = build(), TINY.build().eval()
    for name, layout in (("first", "clip_vision"), ("second", "dinov2_with_registers")):
        encoder, published = trained.get_submodule(name), checkpoint_formats()[layout]
        folder = tmp_path / name
        folder.mkdir()
        write_weights(folder, published.key_map(encoder.config).from_weft(weights(encoder)))
        (folder / "config.json").write_text(json.dumps(published.write_config(encoder.config)))
        filling = starting_weights([f"{name}={folder}"])
        assert filling is not None
        filling(fresh)
    assert torch.equal(features(trained, CLIP_PIXELS), features(fresh, CLIP_PIXELS))


def test_any_two_image_encoders_may_be_mixed():
    grid = Resnet.Config.tiny()
    patches = replace(SMALL_CLIP, image_size=48)
    assert patches.layout() == grid.layout() == MediaLayout(6, 6)
    both = Mixture.Config(first=patches, second=grid).build().eval()
    assert features(both, torch.randn(1, 3, 48, 48)).shape == (1, 36, patches.width + grid.output_width)
