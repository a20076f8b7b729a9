"""Multi-head attention from one sequence to another."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from weft.core.attention_rule import AttentionRule
from weft.layers.kernels import attend


class CrossAttention(nn.Module):
    """Queries attend to a memory of their row; the sub-modules are named as in `Attention`.

    A query whose row has no memory gets exactly zero from attention, so only the output's bias.

    Shapes: queries [B, T, D], memory [B, M, C], valid [B, M] bool or None where all memory exists -> [B, T, D].
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        memory_width: int | None = None,
        head_width: int | None = None,
        query_bias: bool = True,
        key_bias: bool = True,
        value_bias: bool = True,
        output_bias: bool = True,
        head_norm: Callable[[int], nn.Module] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.head_width = head_width or width // num_heads
        memory_width, inner = memory_width or width, num_heads * self.head_width
        self.query = nn.Linear(width, inner, bias=query_bias)
        self.key = nn.Linear(memory_width, inner, bias=key_bias)
        self.value = nn.Linear(memory_width, inner, bias=value_bias)
        self.output = nn.Linear(inner, width, bias=output_bias)
        self.query_norm = head_norm(self.head_width) if head_norm else nn.Identity()
        self.key_norm = head_norm(self.head_width) if head_norm else nn.Identity()

    def forward(
        self, queries: Tensor, memory: Tensor, valid: Tensor | None = None, memory_position: Tensor | None = None
    ) -> Tensor:
        """`memory_position` (broadcast to memory) is added to what the keys are made of, not to what the values are."""
        batch, tokens, _ = queries.shape
        addressed = memory if memory_position is None else memory + memory_position
        query = self.query_norm(self._heads(self.query(queries)))
        key = self.key_norm(self._heads(self.key(addressed)))
        rule = AttentionRule.of_memory(batch, tokens, memory.shape[1], memory.device, valid)
        mixed = attend(query, key, self._heads(self.value(memory)), rule, self.dropout if self.training else 0.0)
        return self.output(mixed.transpose(1, 2).reshape(batch, tokens, -1))

    def _heads(self, projected: Tensor) -> Tensor:
        """Shapes: [B, T, heads * d] -> [B, heads, T, d]."""
        batch, tokens, _ = projected.shape
        return projected.view(batch, tokens, self.num_heads, self.head_width).transpose(1, 2)
