import pytest
import torch
import torch.nn.functional as F

from weft.core.errors import DataError
from weft.layers.patch_embedding import PatchEmbedding


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("size", [24, 30], ids=["whole", "a rest of 6 pixels"])
def test_patches_are_the_convolution_with_its_gradients(size, bias):
    torch.manual_seed(0)
    embedding, units = PatchEmbedding(size, 8, 5, bias), torch.randn(2, 3, size, size)
    weight, direction = embedding.projection.weight, torch.randn(2, 9, 5)
    found = embedding(units)
    expected = F.conv2d(units, weight, embedding.projection.bias, stride=8).flatten(2).transpose(1, 2)
    assert found.shape == (2, 9, 5)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)  # the same 192 products in another order
    ours, theirs = (torch.autograd.grad(out, weight, direction)[0] for out in (found, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)  # sums of 18 places


def test_units_of_another_size_are_refused():
    with pytest.raises(DataError, match="set the processor's image size"):
        PatchEmbedding(24, 8, 5, bias=False)(torch.zeros(1, 3, 32, 32))
