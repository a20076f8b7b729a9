import pytest
import torch

from weft.layers.norms import RMSNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_norm_is_its_definition_with_and_without_gradients(dtype, scale):
    norm = RMSNorm(48, 1e-5).to(dtype)
    norm.weight.data = torch.rand(48).to(dtype)
    x = (torch.randn(2, 3, 48) * scale).to(dtype)
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight.detach().double()
    allowed = 1e-6 if dtype == torch.float32 else 2**-7  # float32 rounding; bfloat16 rounds twice to 8 bits
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            found = norm(x).detach()
        assert found.dtype == dtype
        assert float(((found.double() - exact) / exact.abs().clamp_min(1e-3)).abs().max()) <= allowed * 4
