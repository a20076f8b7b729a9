import pytest
import torch

from weft.layers.cross_attention import CrossAttention
from weft.layers.kernels import KERNELS, force_kernel

VALID = torch.tensor([[True] * 5, [True, False, True, False, False], [False] * 5])
each_kernel = pytest.mark.parametrize("kernel", KERNELS)
TOLERANCE = {"rtol": 0, "atol": 1e-5}  # float32 sums in another order


def layer_and_inputs(**options):
    torch.manual_seed(0)
    layer = CrossAttention(12, 3, memory_width=20, **options)
    return layer, torch.randn(3, 4, 12), torch.randn(3, 5, 20)


def by_hand(layer, queries, memory, position=0.0):
    """One row, head by head: softmax(q k / sqrt(d)) v."""
    q, k, v = layer.query(queries), layer.key(memory + position), layer.value(memory)
    d = layer.head_width
    heads = []
    for start in range(0, layer.num_heads * d, d):
        qh, kh, vh = (x[:, start : start + d] for x in (q, k, v))
        qh, kh = layer.query_norm(qh), layer.key_norm(kh)
        heads.append(torch.softmax(qh @ kh.T / d**0.5, dim=-1) @ vh)
    return layer.output(torch.cat(heads, dim=-1))


@each_kernel
@pytest.mark.parametrize("head_width", [None, 6], ids=["heads divide the width", "heads of their own width"])
def test_it_is_softmax_attention_over_the_memory(kernel, head_width):
    layer, queries, memory = layer_and_inputs(head_width=head_width)
    with force_kernel(kernel):
        found = layer(queries, memory)
    for row in range(3):
        torch.testing.assert_close(found[row], by_hand(layer, queries[row], memory[row]), **TOLERANCE)


@each_kernel
def test_padded_memory_is_as_if_it_were_not_there(kernel):
    layer, queries, memory = layer_and_inputs()
    memory[~VALID] = 1e4
    with force_kernel(kernel):
        found = layer(queries, memory, VALID)
    for row in range(2):
        expected = by_hand(layer, queries[row], memory[row][VALID[row]])
        torch.testing.assert_close(found[row], expected, **TOLERANCE)


@each_kernel
@pytest.mark.parametrize("memory_length", [5, 0], ids=["all padding", "empty"])
def test_a_query_without_memory_gets_only_the_bias(kernel, memory_length):
    layer, queries, memory = layer_and_inputs()
    valid = VALID[:, :memory_length]
    with force_kernel(kernel):
        found = layer(queries, memory[:, :memory_length], valid)
    assert torch.equal(found[2], layer.output.bias.expand(4, 12))


@each_kernel
def test_gradients_stay_finite_and_padding_gets_none(kernel):
    layer, queries, memory = layer_and_inputs()
    memory.requires_grad_()
    with force_kernel(kernel):
        layer(queries, memory, VALID).square().sum().backward()
    assert torch.equal(memory.grad[~VALID], torch.zeros_like(memory.grad[~VALID]))
    assert (memory.grad[VALID].abs().sum(-1) > 0).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in layer.parameters())


def test_head_norms_and_positions_of_the_memory_touch_what_they_say():
    layer, queries, memory = layer_and_inputs(head_norm=torch.nn.LayerNorm)
    for norm in (layer.query_norm, layer.key_norm):
        torch.nn.init.normal_(norm.weight)
    position = torch.randn(1, 5, 20)
    found = layer(queries, memory, VALID, position)
    for row in range(2):
        seen = VALID[row]
        expected = by_hand(layer, queries[row], memory[row][seen], position[0, seen])
        torch.testing.assert_close(found[row], expected, **TOLERANCE)


def test_each_bias_can_be_left_out():
    for name in ("query", "key", "value", "output"):
        layer, *_ = layer_and_inputs(**{f"{name}_bias": False})
        assert [child for child, part in layer.named_children() if getattr(part, "bias", 0) is None] == [name]


def test_it_runs_in_bfloat16():
    layer, queries, memory = (x.bfloat16() for x in layer_and_inputs())
    assert layer(queries, memory, VALID).dtype == torch.bfloat16
