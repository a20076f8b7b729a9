"""A transformer whose learned queries read media, alone or beside a text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from weft.core.attention_rule import AttentionRule
from weft.core.errors import ConfigError, ContextTooShort
from weft.core.media import MediaFeatures
from weft.core.query_text_rules import bidirectional
from weft.layers.attention import Attention
from weft.layers.cross_attention import CrossAttention
from weft.layers.post_norm_block import PostNormBlock, PostNormFeedForward
from weft.layers.precision import working_precision
from weft.layers.query_routes import MEDIA, QueryCrossAttention, QueryTextFeedForward
from weft.layers.slots import BlockContext


class QueryTransformer(nn.Module):
    """BERT's blocks over [queries, text]: one self-attention for both, a feed-forward for each, and in the blocks 0,
    `cross_attention_every`, ... a cross-attention from the queries to the media.

    Queries have no positions; those of the text count from 0. `vocabulary` None leaves the text's weights out. `dropout` is
    that of the input, of attention's probabilities and of what every branch adds, in training alone.

    Shapes: media of N units with values [N, L, C] -> [N, K + T, D], K queries first.
    Source: the Q-Former of BLIP-2, arXiv:2301.12597.
    """

    def __init__(
        self,
        num_queries: int,
        width: int,
        num_layers: int,
        num_heads: int,
        feed_forward_width: int,
        memory_width: int,
        *,
        cross_attention_every: int = 2,
        vocabulary: int | None = None,
        context: int = 512,
        activation: str = "gelu",
        norm_eps: float = 1e-12,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise ConfigError(f"width {width} does not split into {num_heads} heads; choose a number of heads that divides it")
        self.queries = nn.Parameter(torch.empty(num_queries, width))
        self.token_embedding = None if vocabulary is None else nn.Embedding(vocabulary, width)
        self.position_embedding = None if vocabulary is None else nn.Embedding(context, width)
        self.input_norm = nn.LayerNorm(width, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)

        def feed_forward() -> PostNormFeedForward:
            return PostNormFeedForward(width, feed_forward_width, activation, norm_eps, dropout)

        self.blocks = nn.ModuleList(
            PostNormBlock(
                Attention(width, num_heads, layer=layer, dropout=dropout),
                nn.LayerNorm(width, eps=norm_eps),
                QueryTextFeedForward(feed_forward(), None if vocabulary is None else feed_forward()),
            )
            for layer in range(num_layers)
        )
        for block in self.blocks[::cross_attention_every]:
            block.before_feed_forward = QueryCrossAttention(
                CrossAttention(width, num_heads, memory_width=memory_width, dropout=dropout),
                nn.LayerNorm(width, eps=norm_eps),
            )
        if dropout:
            for module in self.modules():
                if isinstance(module, PostNormBlock | QueryCrossAttention):
                    module.dropping = nn.Dropout(dropout)
        self.initialise()

    def initialise(self) -> None:
        """BERT's start, deviation 0.02 and biases at zero; the queries' feed-forwards begin as copies of the text's."""
        nn.init.normal_(self.queries, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, QueryTextFeedForward) and module.text is not None:
                module.query.load_state_dict(module.text.state_dict())

    def embed(self, num_rows: int, num_queries: int, text: Tensor | None) -> Tensor:
        """The first block's input: [num_rows, num_queries + T, D].

        Raises: ConfigError for a text without weights for it; ContextTooShort for a text of more tokens than positions.
        """
        parts = [self.queries[:num_queries].expand(num_rows, -1, -1)]
        if text is not None:
            if self.token_embedding is None or self.position_embedding is None:
                raise ConfigError("this query transformer has no weights for text; set its vocabulary")
            if text.shape[1] > (context := self.position_embedding.num_embeddings):
                raise ContextTooShort(f"a query transformer with {context} positions got a text of {text.shape[1]} tokens")
            place = torch.arange(text.shape[1], device=text.device)
            parts.append(self.token_embedding(text.clamp_min(0)) + self.position_embedding(place))
        return self.dropout(self.input_norm(torch.cat(parts, 1)))

    def forward(self, media: MediaFeatures | None, text: Tensor | None = None, rule: AttentionRule | None = None) -> Tensor:
        """The last hidden state of queries and text; without `media` a row holds no queries, and without `rule` everyone
        sees everyone.

        Shapes: text [N, T] tokens, negative behind a text's end -> [N, K + T, D]; K is 0 without media.
        """
        given = text if media is None else media.values
        assert given is not None
        num_rows, num_queries = len(given), 0 if media is None else len(self.queries)
        if rule is None and text is None:
            rule = AttentionRule.bidirectional(num_rows, num_queries, given.device)
        elif rule is None and text is not None:
            rule = bidirectional(num_queries, text >= 0)
        assert rule is not None
        context = BlockContext(rule, num_queries=num_queries)
        hidden = working_precision(self.embed(num_rows, num_queries, text))
        memory: dict[str, Any] = {MEDIA: media}
        for block in self.blocks:
            hidden, memory = block(hidden, memory, context)
        return hidden
