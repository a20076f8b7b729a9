import pytest
import torch

from weft.layers.rotary import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    QwenScaling,
    Rotary,
    inverse_frequencies,
    rotate,
)


def test_rotation_is_the_published_formula():
    """x cos + (-second half, first half) sin, with each frequency used in both halves."""
    positions, x = torch.tensor([[0, 1, 7, 500], [3, 2, 1, 0]]), torch.randn(2, 3, 4, 16)
    angle = positions[:, None, :, None] * (10_000.0 ** (-torch.arange(0, 16, 2) / 16)).repeat(2)
    first, second = x.chunk(2, -1)
    expected = x * angle.cos() + torch.cat((-second, first), -1) * angle.sin()
    assert torch.allclose(rotate(x, Rotary(16, 10_000.0)(positions)), expected, atol=1e-4)  # angles up to 500 in float32


def test_scores_depend_on_distance_only():
    torch.manual_seed(0)
    rotary, query, key = Rotary(32, 10_000.0, Llama3Scaling()), torch.randn(1, 1, 1, 32), torch.randn(1, 1, 1, 32)

    def score(i: int, j: int) -> torch.Tensor:
        return (rotate(query, rotary(torch.tensor([[i]]))) * rotate(key, rotary(torch.tensor([[j]])))).sum()

    assert torch.allclose(score(9, 4), score(105, 100), atol=1e-4)
    assert not torch.allclose(score(9, 4), score(9, 5), atol=1e-2)


def test_the_gradient_of_a_turn_in_bfloat16_is_float32_s_rounded_once():
    torch.manual_seed(0)
    tables = Rotary(16, 10_000.0)(torch.tensor([[0, 1, 7, 500], [3, 2, 1, 0]]))
    x, direction = (torch.randn(2, 4, 3, 16).bfloat16().transpose(1, 2) for _ in range(2))
    reduced, wide = x.clone().requires_grad_(), x.float().requires_grad_()
    turned, exact = rotate(reduced, tables), rotate(wide, tables)
    assert torch.equal(turned, exact.bfloat16())
    turned.backward(direction)
    exact.backward(direction.float())
    torch.testing.assert_close(reduced.grad, wide.grad.bfloat16(), rtol=2**-7, atol=1e-6)  # fused products may tip a rounding
    assert torch.equal(x, reduced), "the input is left as it was"


def test_frequencies_stay_in_float32():
    """In bfloat16 position 2,000 would be turned by an angle that is off by several radians."""
    positions = torch.tensor([[2000]])
    expected = Rotary(16, 10_000.0)(positions)
    low = torch.nn.Sequential(Rotary(16, 10_000.0)).to(torch.bfloat16)[0](positions)
    assert torch.equal(low[0], expected[0]) and torch.equal(low[1], expected[1])
    assert not Rotary(16, 10_000.0).state_dict()


@pytest.mark.parametrize("scaling", [DynamicScaling(original_context=64), QwenScaling(original_context=64)], ids=str)
def test_a_base_that_grows_with_the_context_starts_behind_the_original_one(scaling):
    plain = inverse_frequencies(10_000.0, 16)
    assert torch.equal(scaling.frequencies(10_000.0, 16, 8), plain)
    assert torch.equal(scaling.frequencies(10_000.0, 16, 64), plain)
    longer = [scaling.frequencies(10_000.0, 16, context) for context in (65, 300)]
    assert (longer[1][1:] < longer[0][1:]).all() and (longer[0][1:] < plain[1:]).all()
    assert all(frequencies[0] == 1 for frequencies in longer)  # the fastest pair turns as before


def test_scaled_bases_are_the_published_formulas():
    exponent = 16 / 14
    dynamic = DynamicScaling(factor=3.0, original_context=64).frequencies(10_000.0, 16, 128)
    assert torch.allclose(dynamic, inverse_frequencies(10_000.0 * (3 * 2 - 2) ** exponent, 16))
    for context, growth in ((65, 3), (128, 3), (129, 7), (600, 31)):  # 2 ** (doublings + 1) - 1
        qwen = QwenScaling(original_context=64).frequencies(10_000.0, 16, context)
        assert torch.allclose(qwen, inverse_frequencies(10_000.0 * growth**exponent, 16))
    assert torch.allclose(LinearScaling(factor=4.0).frequencies(10_000.0, 16, 0) * 4, inverse_frequencies(10_000.0, 16))
