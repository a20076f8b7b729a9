"""Neighbouring frames share a token, and none is left out."""

import pytest
import torch

from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.projectors.stacked_frames import StackedFrames


def test_a_token_is_made_of_its_own_frames_alone_and_of_the_published_layers():
    torch.manual_seed(0)
    projector = StackedFrames.Config(ratio=3, width=16).build(4, 8)
    values = torch.randn(1, 7, 4)
    tokens = projector(MediaFeatures(values, torch.zeros(1).long(), (MediaLayout(1, 7),))).values
    expected = []
    for start in range(0, 7, 3):
        row = torch.zeros(12)
        row[: values[0, start : start + 3].numel()] = values[0, start : start + 3].flatten()
        hidden = (projector.up.weight @ row + projector.up.bias).clamp_min(0)
        expected.append(projector.down.weight @ hidden + projector.down.bias)
    torch.testing.assert_close(tokens, torch.stack(expected), rtol=0, atol=1e-6)  # float32


@pytest.mark.parametrize(("frames", "tokens"), [(1500, 300), (1499, 300), (1, 1)])
def test_thirty_seconds_of_whisper_are_three_hundred_tokens(frames, tokens):
    assert StackedFrames.Config().num_tokens(MediaLayout(1, frames)) == tokens
