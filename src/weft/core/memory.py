"""What stands beside a text for cross-attention, and which token sees which of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from weft.core.attention_rule import AttentionRule

NOTHING, FILLING = -1, -2
"""In the place of an item's number: no feature; one that only fills its item up, seen by who looks at everything."""

Visibility = Literal["preceding", "preceding_in_document", "all_preceding", "next", "run"]
"""Which media a token sees: the nearest one at or before it (Flamingo), that one until its document ends (IDEFICS), all at or
before it, the nearest one at or behind it (the other half of Flamingo's training documents), or the nearest run of adjacent
ones (Llama 3.2)."""


class View(NamedTuple):
    """One call of attention: runs of tokens that see the same features, side by side.

    Shapes: `queries` [R, Q] indices into the flattened B*T tokens and `keys` [R, K] into the flattened B*M features, both
    padded with -1; `place` [B*T] where each token stands among the R*Q, one past the end where it sees nothing. None: the rows
    are the runs, as they are. `rule` is that of the R runs.
    """

    rule: AttentionRule
    queries: Tensor | None = None
    keys: Tensor | None = None
    place: Tensor | None = None


@dataclass(frozen=True)
class Memory:
    """Features beside the text of each row.

    Shapes: `values` [B, N, C]; `item` [B, M] the item of each feature, numbered within the packed row, or `NOTHING` or
    `FILLING`; `visible` [B, T, 2] the first and the last item that a token sees, inclusive, first > last: none; `place` [B, M]
    the index of the token at which a feature's item stands, None where items stand nowhere in the text. N is M, or fewer where
    a cache already holds the keys and values of the first M - N features.
    """

    values: Tensor
    item: Tensor
    visible: Tensor
    place: Tensor | None = None

    @cached_property
    def view(self) -> View | None:
        """The tokens grouped by what they see, once for all layers; None where no token sees anything."""
        rows, features = self.item.shape
        tokens = self.visible.shape[1]
        if features == 0 or tokens == 0:
            return None
        if bool((self.visible == self.visible[:, :1]).all()):
            seen = self._seen(self.item, self.visible[:, 0])
            if not bool(seen.any()):
                return None
            if tokens == 1 or bool(seen.any(1).all()):
                return View(_rule(seen, tokens))
        row = torch.arange(rows, device=self.item.device)[:, None, None].expand(rows, tokens, 1)
        groups, group = torch.cat((row, self.visible), -1).flatten(0, 1).unique(dim=0, return_inverse=True)
        seen = self._seen(self.item[groups[:, 0]], groups[:, 1:])
        sighted = seen.any(1)
        if not bool(sighted.any()):
            return None
        queries = _members(group, len(groups))[sighted]
        keys = _padded(seen)[sighted]
        filled = keys >= 0
        keys = torch.where(filled, keys + groups[sighted, :1] * features, -1)
        place = torch.full((rows * tokens,), queries.numel(), device=queries.device)
        flat = queries.flatten()
        place[flat[flat >= 0]] = (flat >= 0).nonzero().squeeze(-1)
        return View(_rule(filled, queries.shape[1]), queries, keys, place)

    @cached_property
    def sighted(self) -> Tensor:
        """[B, T] bool: the tokens that see something."""
        highest = self.item.amax(1, keepdim=True) if self.item.shape[1] else self.item.new_full((len(self.item), 1), -1)
        first, last = self.visible.unbind(-1)
        return (first <= last) & (first <= highest) & (last >= 0)  # a row's items are numbered from 0 without gaps

    @cached_property
    def seeing_all(self) -> Memory:
        """The same with the tokens that see nothing looking at everything in their row."""
        everything = torch.tensor([FILLING, torch.iinfo(self.visible.dtype).max], device=self.visible.device)
        return replace(self, visible=torch.where(self.sighted[..., None], self.visible, everything))

    @staticmethod
    def _seen(item: Tensor, visible: Tensor) -> Tensor:
        """Shapes: item [G, M], visible [G, 2] -> [G, M] bool."""
        return (item >= visible[:, :1]) & (item <= visible[:, 1:]) & (item != NOTHING)


def _members(group: Tensor, groups: int) -> Tensor:
    """Who belongs to each group, in order, padded with -1. Shapes: group [N] in 0 to G - 1 -> [G, most]."""
    counts = group.bincount(minlength=groups)
    inside = torch.arange(int(counts.amax()), device=group.device) < counts[:, None]
    members = torch.full(inside.shape, -1, device=group.device)
    members[inside] = group.argsort(stable=True)
    return members


def _padded(chosen: Tensor) -> Tensor:
    """The chosen columns of each row, in order, padded with -1. Shapes: [G, N] bool -> [G, most]."""
    counts = chosen.sum(1)
    order = torch.argsort((~chosen).byte(), dim=1, stable=True)[:, : int(counts.amax())]
    return torch.where(torch.arange(order.shape[1], device=order.device) < counts[:, None], order, -1)


def _rule(seen: Tensor, queries: int) -> AttentionRule:
    """Every query of a run sees the same keys. Shapes: seen [R, K] bool."""
    runs, keys = seen.shape
    if bool(seen.all()):
        return AttentionRule.of_memory(runs, queries, keys, seen.device)
    sighted = seen.any(1)
    bias = torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen & sighted[:, None], float("-inf"))
    rule = AttentionRule.of_memory(runs, queries, keys, seen.device, seen)
    return rule.assume(pattern="general", everyone_sees=bool(sighted.all()), bias=bias[:, None, None])
