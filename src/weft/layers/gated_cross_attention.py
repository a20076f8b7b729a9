"""The gated block that lets a frozen language model look at media."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from weft.layers.memory_attention import MemoryAttention
from weft.layers.slots import BlockContext


class GatedCrossAttention(nn.Module):
    """A slot: x + tanh(gate) * attention(norm(x), media), then x + tanh(gate) * feed_forward(norm(x)).

    Both gates start at zero, so that the language model at first is what it was. Attention adds exactly nothing to a token
    that sees no medium; `blind_attention` lets such a token look at all media of its row instead. The feed-forward acts on
    every token, or with `blind_feed_forward` False on those that see a medium.

    Shapes: hidden [B, T, D]; `memory[attention.memory_name]` is a `weft.core.memory.Memory`, absent where there are no media;
    gates [1], or [D] with `gate_per_channel`.
    Source: Flamingo, arXiv:2204.14198.
    """

    def __init__(
        self,
        attention_norm: nn.Module,
        attention: MemoryAttention,
        feed_forward_norm: nn.Module,
        feed_forward: nn.Module,
        *,
        gate_per_channel: int | None = None,
        blind_feed_forward: bool = True,
        blind_attention: bool = False,
    ) -> None:
        super().__init__()
        self.attention_norm = attention_norm
        self.attention = attention
        self.attention_gate = nn.Parameter(torch.zeros(gate_per_channel or 1))
        self.feed_forward_norm = feed_forward_norm
        self.feed_forward = feed_forward
        self.feed_forward_gate = nn.Parameter(torch.zeros(gate_per_channel or 1))
        self.blind_feed_forward = blind_feed_forward
        self.blind_attention = blind_attention

    def forward(self, hidden: Tensor, memory: dict[str, Any], context: BlockContext) -> tuple[Tensor, dict[str, Any]]:
        media = memory.get(self.attention.memory_name)
        if media is None and not self.blind_feed_forward and not torch.is_grad_enabled():
            return hidden, memory
        normed = self.attention_norm(hidden)
        if media is None:
            seen = self.attention.unseen(normed)
        else:
            shown = media.seeing_all if self.blind_attention else media
            seen = self.attention(normed, shown, context.cache)
        hidden = hidden + torch.tanh(self.attention_gate) * seen
        fed = self.feed_forward(self.feed_forward_norm(hidden))
        if not self.blind_feed_forward:
            fed = fed * media.sighted[..., None].to(fed) if media is not None else 0.0 * fed
        return hidden + torch.tanh(self.feed_forward_gate) * fed, memory
