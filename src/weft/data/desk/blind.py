"""What a model is asked that must not see: the same questions over other pictures, or over none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from weft.core.conversation import Conversation, Media
from weft.data.desk.conversations import RenderBox, region_as_text
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


def without_pictures(conversation: Conversation, render: RenderBox) -> Conversation:
    """The same words without the pictures, regions written as text: what a text-only model is trained and asked with."""
    messages = tuple(
        replace(m, parts=tuple(region_as_text(part, render) for part in m.parts if not isinstance(part, Media)))
        for m in conversation.messages
    )
    return replace(conversation, messages=messages)


def _with_picture(conversation: Conversation, picture: Media) -> Conversation:
    messages = tuple(
        replace(message, parts=tuple(picture if isinstance(part, Media) else part for part in message.parts))
        for message in conversation.messages
    )
    return replace(conversation, messages=messages)
