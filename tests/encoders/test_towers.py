"""What the towers of CLIP and SigLIP promise beyond parity."""

import dataclasses

import pytest
import torch

from weft.core.batch import TextSide
from weft.core.errors import ConfigError, DataError
from weft.core.layout import MediaLayout
from weft.encoders.clip import ClipText, ClipVision
from weft.encoders.siglip import SiglipText, SiglipVision

VISION = [ClipVision, SiglipVision]
TEXT = [ClipText, SiglipText]


def text_side(tokens: torch.Tensor, real: torch.Tensor) -> TextSide:
    place = torch.arange(tokens.shape[1]).expand_as(tokens)
    return TextSide(tokens, place, real, place, torch.zeros_like(tokens))


def pictures(config, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("cls", "size", "shape"), [(ClipVision, "l-14-336", (1, 576, 1024)), (SiglipVision, "so400m-14-384", (1, 729, 1152))]
)
def test_published_towers_give_the_published_number_of_features(cls, size, shape):
    config = cls.Config.sizes()[size]
    with torch.device("meta"):
        side = config.image_size
        features = config.build()(torch.empty(1, 3, side, side), torch.zeros(1), (config.layout(),))
    assert features.values.shape == shape
    assert config.layout().positions == shape[1]


@pytest.mark.parametrize("cls", VISION)
def test_features_run_no_block_that_they_do_not_need(cls):
    encoder = cls.Config.tiny().build()
    with torch.no_grad():
        for parameter in [*encoder.blocks[-1].parameters(), *encoder.final_norm.parameters()]:
            parameter.fill_(float("nan"))
        config = encoder.config
        assert encoder(pictures(config), torch.arange(2), (config.layout(),) * 2).values.isfinite().all()
        assert encoder.pool(pictures(config)).isnan().all()


@pytest.mark.parametrize("cls", VISION)
def test_a_feature_layer_that_does_not_exist_is_refused(cls):
    with pytest.raises(ConfigError, match="hidden state"):
        dataclasses.replace(cls.Config.tiny(), feature_layer=3)
    with pytest.raises(ConfigError, match="hidden state"):
        dataclasses.replace(cls.Config.tiny(), feature_layer=-4)


@pytest.mark.parametrize("cls", VISION)
def test_a_picture_of_another_size_is_refused(cls):
    encoder = cls.Config.tiny().build()
    with pytest.raises(DataError, match=r"\(N, 3, 32, 32\)"):
        encoder(torch.zeros(1, 3, 32, 40), torch.zeros(1), (encoder.config.layout(),))


def test_the_class_token_kept_makes_one_more_feature_and_no_grid():
    config = dataclasses.replace(ClipVision.Config.tiny(), keep_class_token=True)
    features = config.build()(pictures(config), torch.arange(2), (config.layout(),) * 2)
    assert config.layout() == MediaLayout(1, 17)
    assert features.values.shape[1] == 17


def test_siglip_without_its_head_has_no_pooled_vector_and_says_so():
    config = dataclasses.replace(SiglipVision.Config.tiny(), pooling_head=False)
    with pytest.raises(ConfigError, match="pooling_head=True"):
        config.build().pool(pictures(config))


def test_clip_reads_text_from_the_left_only():
    tower = ClipText.Config.tiny().build().eval()
    tokens = torch.randint(2, 90, (1, 6), generator=torch.Generator().manual_seed(0))
    real = torch.ones_like(tokens)
    with torch.no_grad():
        short = tower(text_side(tokens[:, :4], real[:, :4]))
        marked = real.clone()
        marked[:, 4:] = 0
        torch.testing.assert_close(tower(text_side(tokens, marked)), short, rtol=0, atol=1e-5)
        assert not torch.allclose(tower(text_side(tokens, real)), short, atol=1e-3)


@pytest.mark.parametrize("cls", [*VISION, *TEXT])
def test_the_published_start_keeps_activations_in_range(cls):
    torch.manual_seed(0)
    tower = cls.Config.tiny().build().eval()
    with torch.no_grad():
        if cls in VISION:
            config = dataclasses.replace(tower.config, feature_layer=-1)
            tower.config = config
            out = tower(pictures(config, 8), torch.arange(8), (config.layout(),) * 8).values
        else:
            tokens = torch.randint(2, 90, (8, 12))
            out = tower(text_side(tokens, torch.ones_like(tokens)))
    assert 0.1 < out.std() < 5  # neither vanished nor exploded: what a start is for
