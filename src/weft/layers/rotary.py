"""Rotary position embedding (RoFormer, arXiv:2104.09864), in the half-split layout of Llama."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from weft.core import config


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling(config.Config):
    """Frequency scaling of Llama 3.1 (wavelengths beyond the original context are stretched by `factor`)."""

    factor: float = 8.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_context: int = 8192


class Rotary(nn.Module):
    """Cosine and sine tables for given positions.

    Shapes: positions [B, T] -> (cos, sin), each [B, 1, T, head_width]; the first half of the sines has its sign turned, which
    is the form that `rotate` takes.
    """

    inverse_frequency: Tensor

    def __init__(self, head_width: int, theta: float, scaling: Llama3Scaling | None = None) -> None:
        super().__init__()
        self.head_width, self.theta, self.scaling = head_width, theta, scaling
        self.register_buffer("inverse_frequency", self.frequencies(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Frequencies follow the model to its device and stay in float32: in bfloat16 far positions would be wrong by turns."""
        super()._apply(fn, recurse)
        if self.inverse_frequency.dtype != torch.float32:
            self.inverse_frequency = self.frequencies().to(self.inverse_frequency.device)
        return self

    def frequencies(self) -> Tensor:
        """The inverse frequencies, [head_width], the first half negative; never saved, rebuilt from the config.

        The cosine is even and the sine odd, so one product with the positions gives both tables as `rotate` takes them.
        """
        inverse = self._inverse()
        return torch.cat((-inverse, inverse))

    def _inverse(self) -> Tensor:
        exponent = torch.arange(0, self.head_width, 2, dtype=torch.int64).float() / self.head_width
        inverse = 1.0 / (self.theta**exponent)
        if self.scaling is None:
            return inverse
        s = self.scaling
        wavelength = 2 * math.pi / inverse
        smooth = (s.original_context / wavelength - s.low_frequency_factor) / (s.high_frequency_factor - s.low_frequency_factor)
        smooth = smooth.clamp(0, 1)
        return (1 - smooth) * inverse / s.factor + smooth * inverse

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angle = positions[:, None, :, None].float() * self.inverse_frequency.float()
        return angle.cos(), angle.sin()


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn queries or keys [B, H, T, d] by their positions' angles, in float32 or above."""
    cos, sin = rotary
    if x.dtype not in (torch.bfloat16, torch.float16):
        return torch.addcmul(x * cos, _swap(x), sin)
    if x.requires_grad and torch.is_grad_enabled():
        return _Turn.apply(x, cos, sin)
    return _turn(x, cos, sin)


def _swap(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((second, first), -1)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: float = 1.0) -> Tensor:
    # Widened first: on a CPU the mixed-precision loops of the products are slower than the copy.
    wide = x.float()
    swapped = _swap(wide)
    return wide.mul_(cos).addcmul_(swapped, sin, value=sign).to(x.dtype)


class _Turn(torch.autograd.Function):
    """The turn of a reduced precision, whose gradient is the turn back: two thirds of the recorded operations' time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(gradient, cos, sin, -1.0), None, None
