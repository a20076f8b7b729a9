"""Multi-head attention under a rule."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from weft.layers.joined_linear import JoinedLinear, joining_pays
from weft.layers.kernels import attend
from weft.layers.linear import Linear
from weft.layers.rotary import rotate
from weft.layers.routes import routed_linears
from weft.layers.slots import BlockContext


class Attention(nn.Module):
    """Self-attention with grouped key and value heads, optional rotary positions and query/key norms.

    Shapes: hidden [B, T, D] -> [B, T, D]. `layer` is the block's index, the cache's address. `key_bias` None: as `input_bias`;
    it shifts all scores of a query alike and changes nothing, so some models leave it out. `dropout` is the share of
    probabilities that is lost in training.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        num_key_value_heads: int | None = None,
        head_width: int | None = None,
        *,
        layer: int = 0,
        input_bias: bool = True,
        key_bias: bool | None = None,
        output_bias: bool = True,
        head_norm: Callable[[int], nn.Module] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.num_key_value_heads = num_key_value_heads or num_heads
        self.head_width = head_width or width // num_heads
        self.layer = layer
        inner, inner_kv = self.num_heads * self.head_width, self.num_key_value_heads * self.head_width
        self.query = Linear(width, inner, bias=input_bias)
        self.key = Linear(width, inner_kv, bias=input_bias if key_bias is None else key_bias)
        self.value = Linear(width, inner_kv, bias=input_bias)
        self.output: nn.Module = Linear(inner, width, bias=output_bias)
        self.query_norm = head_norm(self.head_width) if head_norm else nn.Identity()
        self.key_norm = head_norm(self.head_width) if head_norm else nn.Identity()
        self.routes = nn.ModuleDict()
        self.joined: JoinedLinear | None = None
        self.joins = False

    def join(self) -> None:
        """Queries, keys and values by one product from here on, where it pays and all three are plain maps without routes."""
        self.joins = True
        parts = [part for part in (self.query, self.key, self.value) if type(part) is Linear]
        alike = len({(part.weight.dtype, part.weight.device) for part in parts}) == 1
        whole = len(parts) == 3 and alike and not self.routes and joining_pays(parts[0].weight)
        self.joined = JoinedLinear(parts) if whole else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Attention:
        super()._apply(fn, recurse)  # another precision or device: new memory for each parameter
        if self.joins:
            self.join()
        return self

    def forward(self, hidden: Tensor, context: BlockContext, last: Tensor | None = None) -> Tensor:
        """`last` [B] names the only query of each row: the result is then [B, 1, D]."""
        batch, tokens, _ = hidden.shape
        rotary, rule = context.rotary, context.rule
        routing = context.routing
        query_rotary = rotary
        queries: Tensor | None = None
        whole = routing is None and last is None
        if whole and self.joined is not None and self.joined.serves(self.query, self.key, self.value):
            queries, keys, values = self.joined(hidden)
        else:
            of_key, of_value = (self.key, self.value) if routing is None else routed_linears(self, ("key", "value"), routing)
            keys, values = of_key(hidden), of_value(hidden)
        key, value = self._heads(keys, self.key_norm), self._heads(values)
        if last is not None:
            rows = torch.arange(batch, device=last.device)
            hidden, tokens, rule = hidden[rows, last][:, None], 1, rule.of_queries(last)
            routing = None if routing is None else routing.of(last)
            if rotary is not None:
                query_rotary = rotary[0][rows, :, last][:, :, None], rotary[1][rows, :, last][:, :, None]
        names = ("query", "output")
        of_query, of_output = (self.query, self.output) if routing is None else routed_linears(self, names, routing)
        query = self._heads(of_query(hidden) if queries is None else queries, self.query_norm)
        if context.query_scale is not None:
            scale = context.query_scale
            query = query * (scale if last is None else scale[rows, :, last][:, :, None]).to(query.dtype)
        if rotary is not None and key.shape[2] == 1:  # one call for both: a decoding step is mostly calls
            heads = (self.num_heads, self.num_key_value_heads)
            query, key = rotate(torch.cat((query, key), 1), rotary).split_with_sizes(heads, 1)
        elif rotary is not None and query_rotary is not None:
            query, key = rotate(query, query_rotary), rotate(key, rotary)
        if context.cache is not None:
            key, value = context.cache.append(self.layer, key, value)
        mixed = attend(query, key, value, rule, self.dropout if self.training else 0.0)
        return of_output((mixed if tokens == 1 else mixed.transpose(1, 2)).reshape(batch, tokens, -1))

    def _heads(self, projected: Tensor, norm: nn.Module | None = None) -> Tensor:
        """Shapes: [B, T, heads * d] -> [B, heads, T, d]; one token needs no transposition."""
        batch, tokens, _ = projected.shape
        shape = (batch, -1, 1, self.head_width) if tokens == 1 else (batch, tokens, -1, self.head_width)
        heads = projected.view(shape)
        if norm is not None and not isinstance(norm, nn.Identity):
            heads = norm(heads)
        return heads if tokens == 1 else heads.transpose(1, 2)


def join_projections(module: nn.Module) -> None:
    """Make every self-attention of a model that is there to answer quicker; training it on stays possible."""
    for layer in module.modules():
        if isinstance(layer, Attention):
            layer.join()
