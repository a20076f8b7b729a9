"""Multi-head attention from one sequence to another."""

from __future__ import annotations

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
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_width = head_width or width // num_heads
        memory_width, inner = memory_width or width, num_heads * self.head_width
        self.query = nn.Linear(width, inner, bias=query_bias)
        self.key = nn.Linear(memory_width, inner, bias=key_bias)
        self.value = nn.Linear(memory_width, inner, bias=value_bias)
        self.output = nn.Linear(inner, width, bias=output_bias)

    def forward(self, queries: Tensor, memory: Tensor, valid: Tensor | None = None) -> Tensor:
        batch, tokens, _ = queries.shape
        query, key, value = (
            linear(x).view(batch, x.shape[1], self.num_heads, self.head_width).transpose(1, 2)
            for linear, x in ((self.query, queries), (self.key, memory), (self.value, memory))
        )
        rule = AttentionRule.of_memory(batch, tokens, memory.shape[1], memory.device, valid)
        return self.output(attend(query, key, value, rule).transpose(1, 2).reshape(batch, tokens, -1))
