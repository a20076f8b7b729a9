"""What a decoder block has to look at its encoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from weft.layers.memory_attention import MemoryAttention
from weft.layers.slots import BlockContext


class MemorySlot(nn.Module):
    """A slot: x + attention(norm(x), memory); where the memory is not there, x.

    Shapes: hidden [B, T, D]; `memory[attention.memory_name]` is a `weft.core.memory.Memory`.
    """

    def __init__(self, norm: nn.Module, attention: MemoryAttention) -> None:
        super().__init__()
        self.norm = norm
        self.attention = attention

    def forward(self, hidden: Tensor, memory: dict[str, Any], context: BlockContext) -> tuple[Tensor, dict[str, Any]]:
        seen = memory.get(self.attention.memory_name)
        if seen is None:
            return hidden, memory
        return hidden + self.attention(self.norm(hidden), seen, context.cache), memory
