"""Rotary positions in a part of each head."""

import torch

from weft.layers.partial_rotary import PartialRotary
from weft.layers.rotary import Rotary, rotate


def test_turned_channels_turn_as_in_a_head_of_their_own_and_the_others_stay():
    torch.manual_seed(0)
    heads, positions = torch.randn(2, 3, 5, 12), torch.randint(0, 50, (2, 5))
    turned = rotate(heads, PartialRotary(12, 4, 10_000.0)(positions))
    places = [0, 1, 6, 7]
    others = [2, 3, 4, 5, 8, 9, 10, 11]
    assert torch.equal(turned[..., places], rotate(heads[..., places], Rotary(4, 10_000.0)(positions)))
    assert torch.equal(turned[..., others], heads[..., others])


def test_a_head_that_turns_whole_is_the_plain_rotary():
    positions = torch.arange(6)[None]
    for ours, plain in zip(PartialRotary(8, 8, 5e4)(positions), Rotary(8, 5e4)(positions), strict=True):
        assert torch.equal(ours, plain)


def test_frequencies_stay_in_float32():
    positions = torch.tensor([[2047]])
    expected = PartialRotary(16, 4, 10_000.0)(positions)
    for ours, theirs in zip(PartialRotary(16, 4, 10_000.0).to(torch.bfloat16)(positions), expected, strict=True):
        assert torch.equal(ours, theirs)
