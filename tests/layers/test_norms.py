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


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gradients_in_bfloat16_are_the_definition_s(weight_dtype):
    torch.manual_seed(0)
    norm = RMSNorm(48, 1e-5).to(weight_dtype)
    norm.weight.data = torch.rand(48).to(weight_dtype)
    x, direction = (torch.randn(2, 3, 48).bfloat16() for _ in range(2))
    x.requires_grad_()
    wide, weight = (t.detach().double().requires_grad_() for t in (x, norm.weight))
    (wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight).backward(direction.double())
    out = norm(x)
    out.backward(direction)
    assert out.dtype == torch.bfloat16 and norm.weight.grad.dtype == weight_dtype
    for ours, exact in ((x.grad, wide.grad), (norm.weight.grad, weight.grad)):
        allowed = 1e-5 if ours.dtype == torch.float32 else 2**-8  # rounded once, at the end
        assert float((ours.double() - exact).abs().max() / exact.abs().max()) <= allowed


def test_under_autocast_the_layers_behind_read_what_they_would_have_cast():
    torch.manual_seed(0)
    norm, x = RMSNorm(48, 1e-5), torch.randn(2, 3, 48).bfloat16().requires_grad_()
    norm.weight.data = torch.rand(48)
    unit = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(x), (norm.weight * unit.bfloat16()).bfloat16())
