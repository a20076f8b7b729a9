"""The averaging text tower: padding and neighbours change nothing, every token counts."""

import torch

from weft.core.batch import TextSide
from weft.encoders.mean_text import MeanText


def text(rows, width):
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    segment = torch.zeros_like(tokens)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
        segment[i, : len(row)] = 1
    positions = torch.arange(width).expand_as(tokens)
    return TextSide(tokens, positions, segment, positions, torch.zeros_like(tokens))


def test_padding_and_neighbours_change_nothing():
    torch.manual_seed(0)
    tower = MeanText.Config.tiny().build().eval()
    alone = tower(text([[3, 4, 5]], 3))
    mixed = tower(text([[3, 4, 5], [9, 8, 7, 6, 5, 4]], 6))
    torch.testing.assert_close(alone[0], mixed[0], rtol=0, atol=1e-6)  # fp32 sums of another width


def test_every_token_and_its_place_count():
    torch.manual_seed(0)
    tower = MeanText.Config.tiny().build().eval()
    first, other, turned = tower(text([[3, 4, 5], [3, 4, 6], [5, 4, 3]], 3))
    assert (first - other).abs().max() > 1e-4 and (first - turned).abs().max() > 1e-4
