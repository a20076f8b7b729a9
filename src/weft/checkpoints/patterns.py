"""Patterns over dotted names: `{i}` is an index, `*` any text, and one more component may follow at the end."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from weft.checkpoints.rules import Index

Bindings = tuple[tuple[str, str], ...]


class Pattern(NamedTuple):
    """One name of one rule, ready to match; `literal` measures how specific it is."""

    rule: int
    place: int
    expression: re.Pattern[str]
    literal: int


def compile_patterns(ends: Sequence[tuple[str, ...]]) -> list[Pattern]:
    """The patterns of one end of every rule."""
    return [
        Pattern(number, place, re.compile(expression(pattern)), len(re.sub(r"\{\w+\}|\*", "", pattern)) * 2)
        for number, patterns in enumerate(ends)
        for place, pattern in enumerate(patterns)
    ]


def expression(pattern: str) -> str:
    """A pattern as a regular expression; it binds the indices it names, `*`, and the component that may follow."""
    out, seen = "", set()
    for piece in re.split(r"(\{\w+\}|\*)", pattern):
        name = "star_" if piece == "*" else piece[1:-1] if piece.startswith("{") else None
        if name is None:
            out += re.escape(piece)
        elif name in seen:
            out += f"(?P={name})"
        else:
            seen.add(name)
            out += f"(?P<{name}>{'.+' if piece == '*' else '[0-9]+'})"
    return out if pattern.endswith("*") else out + r"(?:\.(?P<leaf_>[^.]+))?"


def fill(pattern: str, bindings: Iterable[tuple[str, str]]) -> str:
    """The name that a pattern makes of bound values."""
    values = dict(bindings)
    text = re.sub(r"\{(\w+)\}|\*", lambda m: values[m[1] or "star_"], pattern)
    return f"{text}.{values['leaf_']}" if "leaf_" in values else text


def moved(bindings: Bindings, index: Index | None, reverse: bool) -> Bindings | None:
    """The bindings with `{i}` taken to the other side; None where the index function does not bring it back."""
    values = dict(bindings)
    if index is None or "i" not in values:
        return bindings
    there, back = (index.backward, index.forward) if reverse else (index.forward, index.backward)
    old = int(values["i"])
    new = there(old)
    if new < 0 or back(new) != old:
        return None
    return tuple((name, str(new) if name == "i" else text) for name, text in bindings)


def placeholders(pattern: str) -> set[str]:
    """What a pattern binds: index names, and "*"."""
    return set(re.findall(r"\{\w+\}|\*", pattern))


def collapse(keys: Sequence[str]) -> list[str]:
    """Names in order of appearance, those that differ only in one index as one: `blocks.{0..31}.x`."""
    groups: dict[str, list[int]] = {}
    for key in keys:
        found = re.search(r"(?<=\.)[0-9]+(?=\.|$)", key)
        pattern = key if found is None else f"{key[: found.start()]}\0{key[found.end() :]}"
        groups.setdefault(pattern, []).append(-1 if found is None else int(found[0]))
    shown = []
    for pattern, numbers in groups.items():
        ordered = sorted(set(numbers))
        if len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1)):
            shown.append(pattern.replace("\0", f"{{{ordered[0]}..{ordered[-1]}}}"))
        else:
            shown.extend(pattern.replace("\0", str(n)) for n in ordered)
    return shown
