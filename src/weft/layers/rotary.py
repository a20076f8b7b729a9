"""Rotary position embedding (RoFormer, arXiv:2104.09864), in the half-split layout of Llama."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from weft.core import config


class RotaryScaling(config.Config, ABC):
    """How published models stretch their frequencies over texts longer than those of their first training."""

    @abstractmethod
    def frequencies(self, theta: float, head_width: int, context: int) -> Tensor:
        """The inverse frequencies, [head_width / 2], of a model whose texts have at most `context` tokens."""


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling(RotaryScaling):
    """Frequency scaling of Llama 3.1 (wavelengths beyond the original context are stretched by `factor`)."""

    factor: float = 8.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_context: int = 8192

    def frequencies(self, theta: float, head_width: int, context: int) -> Tensor:
        inverse = inverse_frequencies(theta, head_width)
        wavelength = 2 * math.pi / inverse
        span = self.high_frequency_factor - self.low_frequency_factor
        smooth = ((self.original_context / wavelength - self.low_frequency_factor) / span).clamp(0, 1)
        return (1 - smooth) * inverse / self.factor + smooth * inverse


@dataclass(frozen=True, kw_only=True)
class LinearScaling(RotaryScaling):
    """Positions divided by `factor`, arXiv:2306.15595."""

    factor: float = 4.0

    def frequencies(self, theta: float, head_width: int, context: int) -> Tensor:
        return inverse_frequencies(theta, head_width) / self.factor


@dataclass(frozen=True, kw_only=True)
class DynamicScaling(RotaryScaling):
    """A base that grows with the context beyond `original_context`, as in the published configs of InternLM2.

    Published code lets it grow with each text, so keys in a cache keep an older base than the queries that read them, and a
    text's numbers depend on its batch. Here the model's `context` fixes the base: up to the original context both are the
    same, beyond it a text of exactly `context` tokens read at once has the published numbers and every other text keeps the
    laws of cache and packing.
    """

    factor: float = 2.0
    original_context: int = 32_768

    def frequencies(self, theta: float, head_width: int, context: int) -> Tensor:
        length = max(context, self.original_context)
        growth = self.factor * length / self.original_context - (self.factor - 1)
        return inverse_frequencies(theta * growth ** (head_width / (head_width - 2)), head_width)


@dataclass(frozen=True, kw_only=True)
class QwenScaling(RotaryScaling):
    """The same of Qwen 1 (arXiv:2309.16609), whose base grows each time that the context has doubled."""

    original_context: int = 8192

    def frequencies(self, theta: float, head_width: int, context: int) -> Tensor:
        doublings = math.ceil(math.log2(max(context / self.original_context, 1)))
        growth = 2 ** (doublings + 1) - 1
        return inverse_frequencies(theta * growth ** (head_width / (head_width - 2)), head_width)


def inverse_frequencies(theta: float, head_width: int) -> Tensor:
    """The inverse frequencies before any scaling, [head_width / 2]."""
    exponent = torch.arange(0, head_width, 2, dtype=torch.int64).float() / head_width
    return 1.0 / (theta**exponent)


class Rotary(nn.Module):
    """Cosine and sine tables for given positions.

    Shapes: positions [B, T] -> (cos, sin), each [B, 1, T, head_width]; the first half of the sines has its sign turned, which
    is the form that `rotate` takes. `context` is the longest text of the model, which some scalings read.
    """

    inverse_frequency: Tensor

    def __init__(self, head_width: int, theta: float, scaling: RotaryScaling | None = None, context: int = 0) -> None:
        super().__init__()
        self.head_width, self.theta, self.scaling, self.context = head_width, theta, scaling, context
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
        if self.scaling is None:
            inverse = inverse_frequencies(self.theta, self.head_width)
        else:
            inverse = self.scaling.frequencies(self.theta, self.head_width, self.context)
        return torch.cat((-inverse, inverse))

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angle = positions[:, None, :, None] * self.inverse_frequency
        return angle.cos(), angle.sin()


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn queries or keys [B, H, T, d] by their positions' angles, in float32 or above."""
    cos, sin = rotary
    if x.dtype not in (torch.bfloat16, torch.float16):
        return torch.addcmul(x * cos, _swapped(x), sin)
    if x.requires_grad and torch.is_grad_enabled():
        return _Turn.apply(x, cos, sin)
    return _turn(x, cos, sin)


def _swapped(x: Tensor) -> Tensor:
    """The second half of every head before the first."""
    return x.roll(x.shape[-1] // 2, -1)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: float = 1.0) -> Tensor:
    # Widened first: on a CPU the mixed-precision loops of the products are slower than the copy.
    wide = x.float()
    swapped = _swapped(wide)
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
