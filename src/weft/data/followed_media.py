"""Media that more than one stream sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate

from weft.core.conversation import Conversation, Media, Part, Region


def in_every_stream(conversation: Conversation, followers: Callable[[str], Sequence[str]]) -> Conversation:
    """The conversation with each medium once more, right behind itself, for every stream that follows its own.

    What a region names stays what it named.
    """
    counts = [1 + len(followers(medium.stream)) for medium in conversation.media()]
    if sum(counts) == len(counts):
        return conversation
    places = dict(enumerate(accumulate(counts, initial=0)))
    total = places.pop(len(counts))

    def shown(part: Part) -> tuple[Part, ...]:
        if isinstance(part, Media):
            return (part, *(replace(part, stream=name) for name in followers(part.stream)))
        if isinstance(part, Region):
            return (replace(part, media=places.get(part.media, max(part.media, total))),)
        return (part,)

    messages = (replace(m, parts=tuple(each for part in m.parts for each in shown(part))) for m in conversation.messages)
    return replace(conversation, messages=tuple(messages))
