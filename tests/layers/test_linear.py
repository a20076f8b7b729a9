import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from weft.layers.linear import Linear


def layer(width: int, output_width: int, bias: bool) -> Linear:
    torch.manual_seed(0)
    return Linear(width, output_width, bias=bias).bfloat16()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("rows", [1, 8])
def test_a_small_product_in_bfloat16_is_rounded_once(bias, rows):
    linear, x = layer(64, 176, bias), torch.randn(rows, 1, 64).bfloat16()
    with torch.inference_mode():
        found, exact = linear(x), copy.deepcopy(linear).double()(x.double())
    assert found.dtype == torch.bfloat16
    # Rounded from the exact sum or from a float32 sum right beside it: at most one of 2**8 steps of the number's own size.
    assert float(((found.double() - exact).abs() / exact.abs().clamp_min(1e-3)).max()) <= 2**-8


@pytest.mark.parametrize(
    ("x", "reduced"),
    [(torch.ones(2, 64), False), (torch.ones(2048, 64).bfloat16(), True), (torch.ones(1, 0, 64).bfloat16(), True)],
    ids=["float32", "large", "empty"],
)
def test_every_other_product_is_that_of_pytorch(x, reduced):
    linear = layer(64, 176, True) if reduced else layer(64, 176, True).float()
    with torch.no_grad():
        assert torch.equal(linear(x), F.linear(x, linear.weight, linear.bias))


def test_gradients_and_autocast_are_those_of_pytorch():
    linear, x = layer(64, 64, True), torch.randn(8, 64).bfloat16()
    assert torch.equal(linear(x), F.linear(x, linear.weight, linear.bias))
    wide = linear.float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(wide(x), F.linear(x, wide.weight, wide.bias))


def test_it_is_a_linear_layer_to_whoever_looks_for_one():
    linear = Linear(3, 2)
    assert isinstance(linear, nn.Linear)
    assert linear.state_dict().keys() == nn.Linear(3, 2).state_dict().keys()
