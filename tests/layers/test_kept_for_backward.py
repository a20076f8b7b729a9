"""What layers keep for their gradients: training memory is mostly this."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from weft.core.attention_rule import AttentionRule
from weft.layers.feed_forward import quick_gelu
from weft.layers.kernels import attend


def numbers_kept(call) -> int:
    """How many numbers a call keeps in all, each storage once."""
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    return sum(kept.values())


@pytest.mark.parametrize(("samples", "probabilities"), [(2, 2 * 4 * 128 * 128), (128, 0)], ids=["256 kB", "16 MB"])
def test_reduced_attention_keeps_its_probabilities_only_where_they_are_small(samples, probabilities):
    query, key, value = (torch.randn(samples, 4, 128, 16, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    rule = AttentionRule.bidirectional(samples, 128)
    assert numbers_kept(lambda: attend(query, key, value, rule)) == 3 * query.numel() + probabilities


def test_quick_gelu_keeps_one_tensor_and_is_what_it_says():
    x = torch.randn(4, 50, dtype=torch.float64, requires_grad=True)
    assert numbers_kept(lambda: quick_gelu(x)) == x.numel()
    torch.testing.assert_close(quick_gelu(x), x * torch.sigmoid(1.702 * x))
    assert torch.autograd.gradcheck(quick_gelu, x)
