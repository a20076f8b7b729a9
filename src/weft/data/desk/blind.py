"""Blind copies of evaluation items: the same questions over other pictures, so that only words can help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from weft.core.conversation import Conversation, Media
from weft.data.desk.world import DeskItem


def blind(items: Sequence[DeskItem]) -> list[DeskItem]:
    """Every item with the picture of the next but one item of its type, in a circle; truths stay.

    Two steps and not one, because `left_of` items come in pairs over one picture.
    """
    by_type: dict[str, list[DeskItem]] = {}
    for item in items:
        by_type.setdefault(item.type, []).append(item)
    position = dict.fromkeys(by_type, 0)
    blinded: list[DeskItem] = []
    for item in items:
        peers, at = by_type[item.type], position[item.type]
        position[item.type] = at + 1
        picture = next(peers[(at + 2) % len(peers)].conversation.media())
        blinded.append(replace(item, conversation=_with_picture(item.conversation, picture), id=f"{item.id}-blind"))
    return blinded


def _with_picture(conversation: Conversation, picture: Media) -> Conversation:
    messages = tuple(
        replace(message, parts=tuple(picture if isinstance(part, Media) else part for part in message.parts))
        for message in conversation.messages
    )
    return replace(conversation, messages=messages)
