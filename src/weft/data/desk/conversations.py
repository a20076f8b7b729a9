"""Conversations about a scene: with its picture, as text alone, and as a caption."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from weft.core.conversation import Conversation, Media, Message, Part, Region, Text, assistant, user
from weft.data.desk.dice import Dice
from weft.data.desk.questions import Question, asker, detailed_caption, place, raster, with_article
from weft.data.desk.scene import Box, Scene

RenderBox = Callable[[Box], str]
"""Writes a box as text; the processor's box format provides it."""


def ask_turns(scene: Scene, dice: Dice, mix: Mapping[str, float], num_turns: int) -> list[Question]:
    """Up to `num_turns` different questions about one scene, their types drawn from the mix.

    Types that the scene forbids are left out, so a scene of one digit has fewer turns.
    """
    names, weights = tuple(mix), tuple(mix.values())
    turns: list[Question] = []
    for _ in range(num_turns):
        question = asker(dice.weighted(names, weights))(scene, dice)
        if question is not None and all(question.prompt != earlier.prompt for earlier in turns):
            turns.append(question)
    return turns


def with_picture(picture: np.ndarray, turns: Sequence[Question]) -> tuple[Message, ...]:
    """The picture opens the first user turn; every assistant turn is trained."""
    return _dialogue((Media(picture),), turns)


def as_text(scene: Scene, turns: Sequence[Question], render: RenderBox) -> tuple[Message, ...]:
    """The same dialogue with the scene written out in place of its picture, and every region written as text."""
    return tuple(
        Message(m.role, tuple(region_as_text(p, render) for p in m.parts), m.train)
        for m in _dialogue((Text(scene_text(scene, render) + " "),), turns)
    )


def as_caption(picture: np.ndarray, scene: Scene, dice: Dice) -> tuple[Message, ...]:
    """The picture and one caption of it, for contrastive training: the whole desk, or one thing at its place.

    A caption of a single thing is met by in-batch negatives that differ in one fact, which a list of many things
    rarely is.
    """
    if dice.coin():
        text = detailed_caption(scene)
    else:
        thing = dice.choice(scene.things)
        text = f"{with_article(thing)} {place(thing)}"
    return user(Media(picture)), assistant(text)


def scene_text(scene: Scene, render: RenderBox) -> str:
    """The scene as a list in raster order, each thing with its box: what a perfect eye would report."""
    return "Desk: " + ", ".join(f"{thing.name} {render(thing.box)}" for thing in raster(scene)) + "."


def _dialogue(opening: tuple[Part, ...], turns: Sequence[Question]) -> tuple[Message, ...]:
    messages: list[Message] = []
    for number, turn in enumerate(turns):
        messages += [user(*(opening if number == 0 else ()), *turn.prompt), assistant(*turn.answer)]
    return tuple(messages)


def region_as_text(part: Part, render: RenderBox) -> Part:
    """A box written out as text; any other part as it is."""
    if isinstance(part, Region) and len(part.coordinates) == 4:
        x1, y1, x2, y2 = part.coordinates
        return Text(render((x1, y1, x2, y2)))
    return part


def question_conversation(picture: np.ndarray, question: Question, id: str, source: str) -> Conversation:
    """One question about a picture, without its answer: what an evaluation puts before a model."""
    return Conversation((user(Media(picture), *question.prompt),), id=id, source=source)
