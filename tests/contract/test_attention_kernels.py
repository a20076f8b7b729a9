"""Every attention kernel equals the reference on every kind of rule it may be given."""

import pytest
import torch

from weft.core.attention_rule import AttentionRule, RuleSide
from weft.layers.kernels import KERNELS, attend, packed, record_attention, reference

ORDER = torch.arange(12).expand(2, 12)
ONE = torch.ones(2, 12, dtype=torch.long)
PACKED = torch.tensor([[1] * 4 + [2] * 5 + [3] * 3, [1] * 7 + [2] * 3 + [0] * 2])
RULES = {
    "causal": AttentionRule.causal(2, 12),
    "bidirectional": AttentionRule.bidirectional(2, 12),
    "padded": AttentionRule(ORDER, torch.tensor([[1] * 12, [1] * 5 + [0] * 7])),
    "prefix": AttentionRule(torch.where(ORDER < 5, 0, ORDER), ONE),
    "packed": AttentionRule(ORDER, PACKED),
    "window": AttentionRule(ORDER, ONE, window=3),
    "packed window": AttentionRule(ORDER, PACKED, window=2),
    "cached": AttentionRule(ORDER[:, 9:], PACKED[:, 9:], keys=RuleSide(ORDER, PACKED, ORDER)),
    "one token": AttentionRule(ORDER[:, 11:], ONE[:, 11:], keys=RuleSide(ORDER, ONE, ORDER)),
}


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=["every head its own", "grouped"])
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("kernel", [*KERNELS, "chosen"])
def test_kernel_equals_reference_forward_and_backward(kernel, rule, heads):
    torch.manual_seed(0)
    tokens = RULES[rule].shape[1]
    query = torch.randn(2, heads[0], tokens, 8, requires_grad=True)
    key, value = (torch.randn(2, heads[1], 12, 8, requires_grad=True) for _ in range(2))
    weight = torch.randn(2, heads[0], tokens, 8)
    results = []
    for function in (reference, attend if kernel == "chosen" else KERNELS[kernel]):
        out = function(query, key, value, RULES[rule])
        results.append([out, *torch.autograd.grad((out * weight).sum(), (query, key, value))])
    for ours, theirs in zip(*results, strict=True):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # fp32 sums in another order


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=["every head its own", "grouped"])
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("kernel", [*KERNELS, "chosen"])
def test_kernel_adds_a_score_bias_and_trains_it(kernel, rule, heads):
    """Against the definition written out: a learned number for each head and distance, packed samples and caches included."""
    torch.manual_seed(0)
    rule, distances = RULES[rule], torch.randn(4, 23, requires_grad=True)
    _, tokens, keys = rule.shape
    query = torch.randn(2, heads[0], tokens, 8, requires_grad=True)
    key, value = (torch.randn(2, heads[1], keys, 8, requires_grad=True) for _ in range(2))
    weight = torch.randn(2, heads[0], tokens, 8)

    def bias(query_positions, key_positions):
        return distances[:, key_positions[:, None] - query_positions[..., None] + 11].transpose(0, 1)

    wide_key, wide_value = (x.repeat_interleave(heads[0] // heads[1], 1) for x in (key, value))
    scores = query @ wide_key.mT / 8**0.5 + bias(rule.queries.position, rule.keys.position)
    expected = scores.masked_fill(~rule.allowed[:, None], -torch.inf).softmax(-1).nan_to_num(0) @ wide_value
    ours = (attend if kernel == "chosen" else KERNELS[kernel])(query, key, value, rule.with_score_bias(bias))
    inputs = (query, key, value, distances)
    for out, reference_out in zip(
        (ours, *torch.autograd.grad((ours * weight).sum(), inputs)),
        (expected, *torch.autograd.grad((expected * weight).sum(), inputs)),
        strict=True,
    ):
        assert torch.isfinite(out).all()
        torch.testing.assert_close(out, reference_out, rtol=0, atol=2e-5)  # fp32 sums in another order, over both rows


def test_a_query_that_sees_nothing_gets_zero():
    query = torch.randn(2, 4, 12, 8)
    for kernel in KERNELS.values():
        out = kernel(query, query, query, RULES["padded"])
        assert torch.equal(out[1, :, 5:], torch.zeros(4, 7, 8))


def test_recorded_attention_rows_sum_to_one_and_respect_the_rule():
    query = torch.randn(2, 4, 12, 8)
    with record_attention() as maps:
        attend(query, query, query, RULES["packed"])
    (probabilities,) = maps
    allowed = RULES["packed"].allowed[:, None].expand_as(probabilities)
    assert torch.equal(probabilities[~allowed], torch.zeros_like(probabilities[~allowed]))
    sighted = RULES["packed"].allowed.any(-1)[:, None].expand(2, 4, 12)
    torch.testing.assert_close(probabilities.sum(-1)[sighted], torch.ones(int(sighted.sum())))


def test_packing_moves_tokens_with_exact_gradients():
    """Through gather and scatter, in float64, against differences; a row's padding gets and gives nothing."""
    torch.manual_seed(0)
    inputs = [torch.randn(2, heads, 12, 4, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    assert torch.autograd.gradcheck(lambda *x: packed(*x, RULES["packed"]), inputs)
    out = packed(*inputs, RULES["packed"])
    gradients = torch.autograd.grad(out.sum(), inputs)
    for tensor in (out, *gradients):
        assert torch.equal(tensor[1, :, 10:], torch.zeros_like(tensor[1, :, 10:]))
