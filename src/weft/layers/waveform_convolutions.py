"""From a waveform to frames: the convolutions that wav2vec 2.0 and HuBERT begin with."""

from __future__ import annotations

from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNELS = (10, 3, 3, 3, 3, 2, 2)
STRIDES = (5, 2, 2, 2, 2, 2, 2)
HOP_SAMPLES = 320
"""Samples from one frame to the next: 20 ms at 16 kHz."""
FIELD_SAMPLES = 400
"""Samples that one frame sees: 25 ms at 16 kHz."""

Norm = Literal["group", "layer"]


@overload
def num_frames(num_samples: int, num_layers: int = ...) -> int: ...
@overload
def num_frames(num_samples: Tensor, num_layers: int = ...) -> Tensor: ...


def num_frames(num_samples: int | Tensor, num_layers: int = len(KERNELS)) -> int | Tensor:
    """Frames that whole windows give: 49 for a second at 16 kHz, none for less than `FIELD_SAMPLES`.

    With fewer `num_layers`, the frames that leave the first ones.
    """
    frames = num_samples
    for kernel, stride in zip(KERNELS[:num_layers], STRIDES[:num_layers], strict=True):
        frames = (frames - kernel) // stride + 1
        frames = frames.clamp_min(0) if isinstance(frames, Tensor) else max(frames, 0)
    return frames


class ChannelNorm(nn.Module):
    """Every channel to zero mean and unit variance over the real frames of its own unit, then scale and shift.

    A group norm with one channel a group. Padding does not enter the statistics, so that a unit beside a longer one is normed
    as it is alone.

    Shapes: [N, C, T], lengths [N] -> [N, C, T].
    """

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is None:
            return F.group_norm(frames, len(self.weight), self.weight, self.bias, self.eps)
        wide = frames.float()
        real = (torch.arange(frames.shape[2], device=frames.device) < lengths[:, None])[:, None]
        count = lengths.clamp_min(1)[:, None, None]
        centred = wide - (wide * real).sum(2, keepdim=True) / count
        variance = (centred.square() * real).sum(2, keepdim=True) / count
        normed = centred * torch.rsqrt(variance + self.eps)
        return normed.to(frames.dtype) * self.weight[:, None] + self.bias[:, None]


class FrameNorm(nn.LayerNorm):
    """Layer norm over the channels of each frame. Shapes: [N, C, T] -> [N, C, T]."""

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        return super().forward(frames.transpose(1, 2)).transpose(1, 2)


class WaveformLayer(nn.Module):
    """Convolution, norm where there is one, GELU. Shapes: [N, C, T] -> [N, width, T']."""

    def __init__(self, inputs: int, width: int, kernel: int, stride: int, bias: bool, norm: Norm | None) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(inputs, width, kernel, stride, bias=bias)
        nn.init.kaiming_normal_(self.convolution.weight)
        self.norm: ChannelNorm | FrameNorm | None = None
        if norm is not None:
            self.norm = ChannelNorm(width) if norm == "group" else FrameNorm(width)

    def forward(self, frames: Tensor, lengths: Tensor | None) -> Tensor:
        frames = self.convolution(frames)
        return F.gelu(frames if self.norm is None else self.norm(frames, lengths))


class WaveformConvolutions(nn.Module):
    """Seven convolutions without padding, one frame for every 20 ms.

    `norm` "group": each channel is normed over time, after the first convolution only; "layer": each frame over its channels,
    after every convolution.

    Shapes: samples [N, S], lengths [N] of the real samples or None -> [N, num_frames(S), width].
    Source: wav2vec 2.0, arXiv:2006.11477.
    """

    def __init__(self, width: int, norm: Norm, bias: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            WaveformLayer(
                1 if layer == 0 else width, width, kernel, stride, bias, norm if norm == "layer" or layer == 0 else None
            )
            for layer, (kernel, stride) in enumerate(zip(KERNELS, STRIDES, strict=True))
        )

    def forward(self, samples: Tensor, lengths: Tensor | None = None) -> Tensor:
        frames = samples[:, None]
        for number, layer in enumerate(self.layers, start=1):
            frames = layer(frames, None if lengths is None else num_frames(lengths, number))
        return frames.transpose(1, 2)
