"""Multi-head attention from a text to the memory beside it, under the rule of who sees which item."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from weft.core.attention_rule import AttentionRule
from weft.core.cache import Cache
from weft.core.memory import Memory
from weft.layers.kernels import attend, attend_view
from weft.layers.linear import Linear


class MemoryAttention(nn.Module):
    """Every token attends to the features of the items that it sees; one that sees none gets exactly zero.

    Without biases, so that nothing becomes nothing. `layer` is the block's index and `memory_name` the memory's name, together
    the cache's address.

    Shapes: hidden [B, T, D], memory values [B, N, C] -> [B, T, D], or [1, 1, D] of zeros where no token sees anything.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        num_key_value_heads: int | None = None,
        head_width: int | None = None,
        *,
        memory_width: int | None = None,
        layer: int = 0,
        memory_name: str = "image",
        head_norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.head_width = head_width or width // num_heads
        self.layer, self.memory_name = layer, memory_name
        memory_width = memory_width or width
        inner, inner_kv = num_heads * self.head_width, (num_key_value_heads or num_heads) * self.head_width
        self.query = Linear(width, inner, bias=False)
        self.key = Linear(memory_width, inner_kv, bias=False)
        self.value = Linear(memory_width, inner_kv, bias=False)
        self.output = Linear(inner, width, bias=False)
        self.query_norm = head_norm(self.head_width) if head_norm else nn.Identity()
        self.key_norm = head_norm(self.head_width) if head_norm else nn.Identity()

    def forward(self, hidden: Tensor, memory: Memory, cache: Cache | None = None) -> Tensor:
        new = None
        if memory.values.shape[1]:
            new = self.key_norm(self._heads(self.key(memory.values))), self._heads(self.value(memory.values))
        if cache is not None:
            new = cache.append_memory(self.memory_name, self.layer, new)
        view = memory.view
        if view is None or new is None:
            return self.unseen(hidden)
        query = self.query_norm(self._heads(self.query(hidden)))
        mixed = attend_view(query, *new, view)
        return self.output(mixed.transpose(1, 2).reshape(*hidden.shape[:2], -1))

    def unseen(self, hidden: Tensor) -> Tensor:
        """Zeros [1, 1, D]; while training, made from every parameter, so that ranks whose batch shows nothing stay in step."""
        if not torch.is_grad_enabled():
            return hidden.new_zeros(1, 1, 1)
        query = self.query_norm(self._heads(self.query(hidden[:1, :1])))
        nothing = hidden.new_zeros(1, 1, self.key.in_features)
        key, value = self.key_norm(self._heads(self.key(nothing))), self._heads(self.value(nothing))
        mixed = attend(query, key, value, AttentionRule.of_memory(1, 1, 1, hidden.device))
        return 0.0 * self.output(mixed.transpose(1, 2).reshape(1, 1, -1))

    def _heads(self, projected: Tensor) -> Tensor:
        """Shapes: [B, T, heads * d] -> [B, heads, T, d]."""
        batch, tokens, _ = projected.shape
        return projected.view(batch, tokens, -1, self.head_width).transpose(1, 2)
