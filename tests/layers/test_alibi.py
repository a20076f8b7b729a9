"""Linear score biases."""

import torch

from weft.layers.alibi import Alibi


def test_the_papers_eight_heads_have_the_papers_slopes():
    assert Alibi(8).slopes.tolist() == [2.0**-i for i in range(1, 9)]
    assert Alibi(4, 16).slopes.tolist() == [2.0**-i for i in (4, 8, 12, 16)]


def test_other_numbers_of_heads_take_every_second_slope_of_the_next_power_first():
    eight = Alibi(8).slopes.tolist()
    assert Alibi(6).slopes.tolist() == [*eight[1::2], *eight[0:4:2]]


def test_the_bias_reads_positions_and_counts_distance_both_ways():
    queries, keys = torch.tensor([[7], [100]]), torch.tensor([[4, 7, 9], [98, 100, 101]])
    bias = Alibi(2, 2)(queries, keys)
    assert bias.shape == (2, 2, 1, 3)
    assert bias[0, 0, 0].tolist() == [-1.5, 0, -1] and bias[1, 1, 0].tolist() == [-0.5, 0, -0.25]


def test_slopes_stay_in_float32_and_out_of_the_state():
    alibi = Alibi(12).to(torch.bfloat16)
    assert torch.equal(alibi.slopes, Alibi(12).slopes) and alibi.state_dict() == {}
