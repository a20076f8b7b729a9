"""A language model's own file for one that has experts: each expert starts as a copy of the layer beside it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace

from torch import Tensor

from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.patterns import expression
from weft.checkpoints.rules import Rule
from weft.layers.routes import VISUAL


def expert_name(name: str) -> str:
    """Where the expert of a parameter of a block's attention or feed-forward stands."""
    return re.sub(r"(\.(?:attention|feed_forward))\.", rf"\1.routes.{VISUAL}.", name, count=1)


def with_experts(key_map: KeyMap, names: Collection[str]) -> KeyMap:
    """The table of a model with the parameters `names`: what it writes where an expert stands beside goes there too.

    The table only reads; a model with experts has a layout of its own to be written in.
    """
    rules = [_copying(rule, names) for rule in key_map.rules]
    return KeyMap(rules, drop=key_map.drop, spellings=key_map.spellings)


def _copying(rule: Rule, names: Collection[str]) -> Rule:
    copied = [n for n, target in enumerate(rule.targets) if _stands(expert_name(target), target, names)]
    if not copied:
        return rule

    def forward(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        made = rule.forward(tensors)
        return (*made, *(made[n] for n in copied))

    experts = (expert_name(rule.targets[n]) for n in copied)
    return replace(rule, targets=(*rule.targets, *experts), forward=forward, read_only=True)


def _stands(expert: str, target: str, names: Collection[str]) -> bool:
    """Whether the model has a parameter under the expert's pattern."""
    matches = re.compile(expression(expert)).fullmatch
    return expert != target and any(matches(name) for name in names)
