"""MiniGPT-4's projector on LLaMA-2 against a loop over patches."""

import pytest
import torch

from weft.core.errors import ConfigError
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.projectors.adjacent_features import AdjacentFeatures


@torch.no_grad()
def test_each_token_is_the_matrix_on_four_patches_that_follow_each_other():
    torch.manual_seed(0)
    projector = AdjacentFeatures.Config().build(5, 7)
    values = torch.randn(2, 24, 5)
    tokens = projector(MediaFeatures(values, torch.arange(2), (MediaLayout(3, 8),) * 2))
    weight, bias = projector.linear.weight, projector.linear.bias
    for picture in range(2):
        for number in range(6):
            four = torch.cat([values[picture, 4 * number + place] for place in range(4)])
            expected = weight @ four + bias
            assert (tokens.values[6 * picture + number] - expected).abs().max() < 1e-6  # one sum of twenty products
    assert tokens.item.tolist() == [0] * 6 + [1] * 6


def test_the_published_size():
    config = AdjacentFeatures.Config()
    with torch.device("meta"):
        projector = config.build(1408, 4096)
    assert config.num_tokens(MediaLayout(16, 16)) == 64
    assert sum(p.numel() for p in projector.parameters()) == 5632 * 4096 + 4096


def test_features_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match="joins 4 features each, 15 do not divide"):
        AdjacentFeatures.Config().num_tokens(MediaLayout(3, 5))
