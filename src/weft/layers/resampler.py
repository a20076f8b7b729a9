"""Learned queries that read features once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weft.core.errors import ConfigError
from weft.layers.cross_attention import CrossAttention


class Resampler(nn.Module):
    """Learned queries attend once to mapped and normalised features; there is no residual and no feed-forward.

    Positions are added to queries and keys, not to values. The map of the features has no bias and is left out where the widths
    agree.

    Shapes: features [N, L, C], valid [N, L] or None, query_position [K, D], feature_position [1 or N, L, D] -> [N, K, D].
    Source: the resampler of Qwen-VL, arXiv:2308.12966.
    """

    def __init__(self, num_queries: int, input_width: int, width: int, head_width: int, norm_eps: float) -> None:
        super().__init__()
        if width % head_width:
            raise ConfigError(f"width {width} does not split into heads of {head_width}; choose a head_width that divides it")
        self.queries = nn.Parameter(torch.empty(num_queries, width))
        self.input = nn.Linear(input_width, width, bias=False) if input_width != width else nn.Identity()
        self.query_norm = nn.LayerNorm(width, eps=norm_eps)
        self.feature_norm = nn.LayerNorm(width, eps=norm_eps)
        self.attention = CrossAttention(width, width // head_width)
        nn.init.trunc_normal_(self.queries, std=0.02)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(
        self,
        features: Tensor,
        valid: Tensor | None = None,
        query_position: Tensor | None = None,
        feature_position: Tensor | None = None,
    ) -> Tensor:
        queries = self.query_norm(self.queries)
        if query_position is not None:
            queries = queries + query_position
        memory = self.feature_norm(self.input(features))
        return self.attention(queries.expand(len(memory), -1, -1), memory, valid, feature_position)
