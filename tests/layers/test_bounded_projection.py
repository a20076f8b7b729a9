"""A linear layer that clips, then normalises."""

import torch
from torch import nn

from weft.layers.bounded_projection import BoundedProjection


@torch.no_grad()
def test_the_output_is_clipped_first_and_normalised_over_its_whole_width_second():
    torch.manual_seed(0)
    layer = BoundedProjection(8, 6, limit=0.3, norm=nn.LayerNorm(6, bias=False))
    layer.norm.weight.normal_()
    x = torch.randn(4, 8)
    clipped = (x @ layer.weight.T).clip(-0.3, 0.3)
    assert (clipped.abs() == 0.3).any()  # the bound is reached
    centred = clipped - clipped.mean(-1, keepdim=True)
    expected = centred / (clipped.var(-1, keepdim=True, correction=0) + 1e-5).sqrt() * layer.norm.weight
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-6)


def test_without_bounds_it_is_a_linear_layer_by_its_names_too():
    layer = BoundedProjection(8, 6)
    x = torch.randn(4, 8)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight)) and list(layer.state_dict()) == ["weight"]
