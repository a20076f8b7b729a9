"""Which medium each token of a text sees through cross-attention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weft.core.memory import Visibility


def visible_media(rule: Visibility, places: Sequence[int], length: int, ends: Sequence[int] = ()) -> np.ndarray:
    """The first and the last medium that each token sees, numbered from 0 in the order of the text; (0, -1) for none.

    `places` are the tokens at which media stand, ascending; `ends` those that end a document.

    Shapes: -> [length, 2] int64.
    """
    at, token = np.asarray(places, np.int64), np.arange(length)
    last = at.searchsorted(token, "right") - 1  # the nearest medium at or before a token
    first = last
    if rule == "next":
        first = at.searchsorted(token, "left")
        last = np.where(first < len(at), first, -1)
    elif rule == "all_preceding":
        first = np.zeros_like(last)
    elif rule == "run" and len(at):
        begins = np.concatenate(([True], np.diff(at) > 1))
        first = np.maximum.accumulate(np.where(begins, np.arange(len(at)), 0))[last.clip(0)]
    elif rule == "preceding_in_document" and len(at):
        end = np.concatenate(([-1], np.asarray(sorted(ends), np.int64)))
        ended = end[end.searchsorted(token, "left") - 1]  # the last end before a token; the end itself still sees
        last = np.where(at[last.clip(0)] < ended, -1, last)
        first = last
    none = last < 0
    return np.stack((np.where(none, 0, first), np.where(none, -1, last)), -1)
