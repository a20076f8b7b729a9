"""Attention to a memory: against a dense mask written out token by token."""

import pytest
import torch
from torch import nn

from weft.core.memory import Memory
from weft.layers.kernels import KERNELS, force_kernel
from weft.layers.memory_attention import MemoryAttention
from weft.layers.norms import RMSNorm

each_kernel = pytest.mark.parametrize("kernel", KERNELS)
TOLERANCE = {"rtol": 0, "atol": 1e-5}  # float32 sums in another order
NONE = (0, -1)

# by row, the items that each of six tokens sees, and the item of each of eight features
CASES = {
    "nearest before": ([[NONE, (0, 0), (0, 0), (1, 1), (1, 1), (1, 1)], [NONE] * 3 + [(0, 0)] * 3],
                       [[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, -1, -1, -1, -1, -1, -1]]),
    "runs": ([[(0, 0), (0, 1), (0, 1), (2, 2), (2, 2), NONE], [(0, 2)] * 6],
             [[0, 0, 1, 1, 1, 2, 2, 2], [0, 1, 2, 2, 2, 2, 2, 2]]),
    "the same for all": ([[(0, 0)] * 6, [(0, 1)] * 6], [[0] * 8, [0] * 4 + [1] * 4]),
    "a row without": ([[NONE] * 6, [(0, 0)] * 6], [[-1] * 8, [0] * 5 + [-1] * 3]),
    "nothing at all": ([[NONE] * 6, [(3, 4)] * 6], [[0] * 8, [0] * 8]),
}  # fmt: skip
each_case = pytest.mark.parametrize("case", CASES)


def setting(case, **options):
    torch.manual_seed(0)
    visible, item = (torch.tensor(x) for x in CASES[case])
    layer = MemoryAttention(12, 6, memory_width=10, **options)
    return layer, torch.randn(2, 6, 12), Memory(torch.randn(2, 8, 10), item, visible)


def by_hand(layer, hidden, memory):
    """Token by token, head by head."""
    out = torch.zeros_like(hidden)
    d, groups = layer.head_width, layer.query.out_features // layer.key.out_features
    for row in range(len(hidden)):
        for token in range(hidden.shape[1]):
            first, last = memory.visible[row, token].tolist()
            seen = [m for m, i in enumerate(memory.item[row].tolist()) if first <= i <= last and i >= 0]
            if not seen:
                continue
            q, k, v = (
                layer.query(hidden[row, token]),
                layer.key(memory.values[row, seen]),
                layer.value(memory.values[row, seen]),
            )
            heads = []
            for head in range(len(q) // d):
                of = slice(head // groups * d, (head // groups + 1) * d)
                score = layer.key_norm(k[:, of]) @ layer.query_norm(q[head * d : (head + 1) * d]) / d**0.5
                heads.append(torch.softmax(score, 0) @ v[:, of])
            out[row, token] = layer.output(torch.cat(heads))
    return out


@each_kernel
@each_case
@pytest.mark.parametrize("heads", [6, 2], ids=["own heads", "shared heads"])
def test_every_token_sees_its_items_and_no_other(case, heads, kernel):
    layer, hidden, memory = setting(case, num_key_value_heads=heads, head_norm=lambda d: RMSNorm(d, 1e-6))
    expected = by_hand(layer, hidden, memory)
    with force_kernel(kernel):
        found = layer(hidden, memory)
    torch.testing.assert_close(found.expand_as(expected), expected, **TOLERANCE)
    assert not found.expand_as(expected)[~memory.sighted].any(), "a token that sees nothing gets exactly nothing"


@each_case
def test_gradients_are_those_of_the_definition(case):
    layer, hidden, memory = setting(case)
    hidden.requires_grad_()
    memory.values.requires_grad_()
    wanted = [hidden, *layer.parameters()] + ([memory.values] if memory.view else [])
    weight = torch.randn(2, 6, 12)
    reference = by_hand(layer, hidden, memory) * weight
    expected = torch.autograd.grad(reference.sum(), wanted, allow_unused=True) if reference.requires_grad else None
    found = torch.autograd.grad((layer(hidden, memory) * weight).sum(), wanted, materialize_grads=True)
    for number, gradient in enumerate(found):
        reference = torch.zeros_like(gradient) if expected is None else expected[number]
        torch.testing.assert_close(gradient, reference, **TOLERANCE)


def test_a_run_reads_its_own_items_only():
    _, _, memory = setting("nearest before")
    assert memory.view is not None and memory.view.keys is not None
    assert memory.view.keys.shape == (3, 5)  # three runs, the largest with five features; a dense mask would be 12 x 16


def test_every_parameter_joins_where_nothing_is_seen():
    layer, hidden, memory = setting("nothing at all", head_norm=nn.LayerNorm)
    layer(hidden, memory).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())
    with torch.no_grad():
        assert not layer(hidden, memory).any()


def test_blind_tokens_may_be_shown_everything():
    _, _, memory = setting("nearest before")
    everything = memory.seeing_all
    assert everything.sighted.all()
    assert torch.equal(everything.visible[memory.sighted], memory.visible[memory.sighted])
