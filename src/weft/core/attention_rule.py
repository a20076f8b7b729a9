"""Who sees whom: attention as a rule over integer vectors instead of a matrix.

Token i sees token j iff their segments are equal and non-zero and order[j] <= order[i], and, with a window, their positions
differ by less than the window. Causal, prefix-LM, bidirectional, image blocks and packing are values of these vectors.
Letters: B rows, T tokens.
"""

from __future__ import annotations

from copy import copy
from functools import cached_property
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from weft.core.score_bias import ScoreBias

Pattern = Literal["full", "causal", "general"]
BLOCK = 32  # longer segments are padded to whole vectors: a bf16 softmax over 110 keys takes twice the time of one over 128


class RuleSide(NamedTuple):
    """The vectors of one side, queries or keys; each [B, T] integer."""

    order: Tensor
    segment: Tensor
    position: Tensor


class Segments:
    """Where the packed samples of a batch lie: rows of flat token indices, padded with -1; beyond `BLOCK` to a multiple of it.

    Shapes: `tokens` [S, L] into the flattened B*T = `num_tokens` tokens, -1 where a segment is shorter; each token stands in
    at most one place. `rule` is the same rule over the S segments.
    """

    def __init__(self, tokens: Tensor, num_tokens: int, rule: AttentionRule) -> None:
        self.tokens, self.num_tokens, self.rule = tokens, num_tokens, rule
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}

    def rows(self, heads: int) -> tuple[Tensor, Tensor]:
        """Which row of [B, T, H] stands in each place of [S, H, L], flattened, and the other way; one past the end for none."""
        if heads not in self._rows:
            places, rows = self.tokens.numel() * heads, self.num_tokens * heads
            head = torch.arange(heads, device=self.tokens.device)[:, None]
            there = torch.where(self.tokens < 0, rows, self.tokens * heads)[:, None] + head
            there = there.clamp_max(rows).flatten()
            back = torch.full((rows + 1,), places, device=there.device)
            back[there] = torch.arange(places, device=there.device)
            self._rows[heads] = there, back[:rows]
        return self._rows[heads]


class AttentionRule:
    """The rule for one call of attention.

    Shapes: `order`, `segment`, `position` [B, T] of the queries; `keys` the same of the keys when they differ (a cache).
    `position` defaults to `order`; windows and score biases read positions, never indices or order. `score_bias` is what the
    kernels add to the scores beside the rule, if anything.
    """

    def __init__(
        self,
        order: Tensor,
        segment: Tensor,
        position: Tensor | None = None,
        window: int | None = None,
        keys: RuleSide | None = None,
    ) -> None:
        self.queries = RuleSide(order, segment, order if position is None else position)
        self.keys = self.queries if keys is None else keys
        self.window = window
        self.score_bias: ScoreBias | None = None
        self.everyone_sees = False  # True where it is known that each query sees a key
        self._biases: dict[torch.dtype, Tensor] = {}

    @staticmethod
    def causal(batch: int, tokens: int, device: torch.device | str = "cpu") -> AttentionRule:
        """Every row one segment, each token sees itself and what came before."""
        order = torch.arange(tokens, device=device).expand(batch, tokens)
        rule = AttentionRule(order, torch.ones_like(order))
        return rule.assume(pattern="causal" if tokens > 1 else "full", everyone_sees=True)

    @staticmethod
    def bidirectional(
        batch: int, tokens: int, device: torch.device | str = "cpu", valid: Tensor | None = None
    ) -> AttentionRule:
        """Every row one segment, each token sees all; `valid` [B, T] marks the tokens that exist."""
        order = torch.zeros(batch, tokens, dtype=torch.long, device=device)
        segment = torch.ones_like(order) if valid is None else valid.long()
        rule = AttentionRule(order, segment, torch.arange(tokens, device=device).expand(batch, tokens))
        return rule.assume(pattern="full", everyone_sees=True) if valid is None else rule

    @staticmethod
    def of_memory(
        batch: int, queries: int, memory: int, device: torch.device | str = "cpu", valid: Tensor | None = None
    ) -> AttentionRule:
        """Every query sees the whole memory of its row; `valid` [B, M] marks the memory that exists."""
        zero = torch.zeros((), dtype=torch.long, device=device)
        query_order, key_order = zero.expand(batch, queries), zero.expand(batch, memory)
        key_segment = key_order + 1 if valid is None else valid.long()
        rule = AttentionRule(query_order, query_order + 1, keys=RuleSide(key_order, key_segment, key_order))
        seen = valid is None and memory > 0
        return rule.assume(pattern="full" if seen else "general", everyone_sees=seen)

    def assume(self, *, pattern: Pattern, everyone_sees: bool, bias: Tensor | None = None) -> Self:
        """State what the caller knows of the rule by construction, so that nobody has to look at the data.

        `everyone_sees`: each query sees at least one key. `bias`: what `bias` would compute, or what broadcasts to it.
        """
        self.everyone_sees = everyone_sees
        self.__dict__["pattern"] = pattern
        if bias is not None:
            self.__dict__["bias"] = bias
        return self

    def of_queries(self, index: Tensor) -> AttentionRule:
        """The rule of one query a row, against the same keys. Shapes: index [B]."""
        row = torch.arange(len(index), device=index.device)
        order, segment, position = (side[row, index][:, None] for side in self.queries)
        rule = AttentionRule(order, segment, position, self.window, self.keys).with_score_bias(self.score_bias)
        rule.everyone_sees = self.everyone_sees
        if self.__dict__.get("pattern") == "causal" and bool((index == self.shape[1] - 1).all()):
            return rule.assume(pattern="full", everyone_sees=True)
        return rule

    def with_window(self, window: int | None) -> AttentionRule:
        """The same rule under a sliding window (in positions)."""
        if window == self.window:
            return self
        keys = None if self.keys is self.queries else self.keys  # packed samples are told apart where both sides are one
        return AttentionRule(*self.queries, window=window, keys=keys).with_score_bias(self.score_bias)

    def with_score_bias(self, score_bias: ScoreBias | None) -> AttentionRule:
        """The same rule beside other score biases; what is known of the rule stays known.

        The numbers are computed once, when a kernel first asks for them, so a rule with a bias belongs to one forward: the next
        one may have other weights.
        """
        if score_bias is self.score_bias:
            return self
        rule = copy(self)
        rule.score_bias, rule._biases = score_bias, {}
        rule.__dict__.pop("segments", None)
        return rule

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, number of queries, number of keys)."""
        return self.queries.order.shape[0], self.queries.order.shape[1], self.keys.order.shape[1]

    @cached_property
    def allowed(self) -> Tensor:
        """The rule written out: [B, Tq, Tk] bool, True where the query sees the key."""
        q, k = self.queries, self.keys
        seen = (q.segment[:, :, None] == k.segment[:, None, :]) & (q.segment[:, :, None] != 0)
        seen &= k.order[:, None, :] <= q.order[:, :, None]
        if self.window is not None:
            seen &= (q.position[:, :, None] - k.position[:, None, :]).abs() < self.window
        return seen

    @cached_property
    def bias(self) -> Tensor:
        """The rule as scores to add: [B, 1, Tq, Tk] float32, 0 where seen, -inf elsewhere.

        A query that sees no key gets a row of zeros: its output is defined (and masked out later) instead of NaN.
        """
        seen = self.allowed
        blind = ~seen.any(-1, keepdim=True)
        bias = torch.zeros(seen.shape, dtype=torch.float32, device=seen.device)
        return bias.masked_fill_(~(seen | blind), float("-inf"))[:, None]

    def bias_in(self, dtype: torch.dtype) -> Tensor:
        """All that is added to the scores, `bias` and the score bias, in their precision and computed once for all layers.

        Shapes: [B or 1, H or 1, Tq or 1, Tk].
        """
        if dtype not in self._biases:
            added = self.bias
            if self.score_bias is not None:
                numbers = self.score_bias(self.queries.position, self.keys.position)
                added = numbers if self.pattern == "full" else numbers + added
            self._biases[dtype] = added.to(dtype)
        return self._biases[dtype]

    @cached_property
    def sighted(self) -> Tensor:
        """[B, 1, Tq, 1] bool: the queries that see at least one key."""
        return self.allowed.any(-1)[:, None, :, None]

    @cached_property
    def pattern(self) -> Pattern:
        """The cheapest exact description: every key visible, lower triangle, or neither."""
        _batch, queries, keys = self.shape
        if self.window is not None:
            span = self.keys.position.max() - self.keys.position.min()
            if int(span) >= self.window:
                return "general"
        if bool((self.keys.segment != self.keys.segment[:, :1]).any()) or bool((self.keys.segment == 0).any()):
            return "general"
        if bool((self.queries.segment != self.keys.segment[:, :1]).any()):
            return "general"
        if bool((self.keys.order.amax(1) <= self.queries.order.amin(1)).all()):
            return "full"
        if queries == keys and self.keys is self.queries and bool((self.keys.order.diff(dim=1) > 0).all()):
            return "causal"
        return "general"

    @cached_property
    def segments(self) -> Segments | None:
        """The packed samples one by one, or None where no row holds more than one sample.

        Attention over them costs the sum of squared segment lengths instead of the squared row length.
        """
        if self.keys is not self.queries or self.__dict__.get("pattern", "general") != "general":
            return None  # a rule known to be full or causal has one segment a row: no look at the data
        segment = self.queries.segment
        batch, tokens = segment.shape
        if int(segment.amax()) <= 1:
            return None
        row = torch.arange(batch, device=segment.device)[:, None].expand(batch, tokens)
        key = torch.where(segment > 0, row * (segment.amax() + 1) + segment, -1).flatten()
        flat = torch.argsort(key, stable=True)
        flat = flat[key[flat] >= 0]
        _, lengths = torch.unique_consecutive(key[flat], return_counts=True)
        longest = int(lengths.amax())
        longest = longest if longest <= BLOCK else -(-longest // BLOCK) * BLOCK
        inside = torch.arange(longest, device=segment.device)[None] < lengths[:, None]
        index = torch.full((len(lengths), longest), -1, device=segment.device, dtype=torch.long)
        index[inside] = flat
        gather = index.clamp_min(0)
        order, position = (side.flatten()[gather] for side in (self.queries.order, self.queries.position))
        rule = AttentionRule(order, inside.long(), position, self.window).with_score_bias(self.score_bias)
        rule.everyone_sees = True  # a token sees itself, and what the padding gets is never read
        return Segments(index, batch * tokens, rule)
