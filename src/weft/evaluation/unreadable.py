"""Many media at once, of which a few cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from weft.core.errors import UnreadableMedium

Item = TypeVar("Item")
Result = TypeVar("Result")


def made_or_refused(
    make: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]
) -> list[Result | UnreadableMedium]:
    """What `make` makes of each item, in order, or why its medium cannot be read.

    Where `make` refuses items it is given their halves, down to the one that cannot be read: what is sound stays together.
    """
    try:
        return [*make(items)] if items else []
    except UnreadableMedium as error:
        if len(items) == 1:
            return [error]
    half = len(items) // 2
    return [*made_or_refused(make, items[:half]), *made_or_refused(make, items[half:])]
