"""One phrase a thing: the short texts by which an image tower learns what is where."""

from __future__ import annotations

from weft.core.conversation import Conversation, assistant, user
from weft.core.conversation import Media as Picture
from weft.data.desk.draw import draw
from weft.data.desk.questions import place, with_article
from weft.data.desk.scene import DigitObject, Scene
from weft.data.desk.world import Desk

PHRASES = 4  # a scene's phrases; scenes of fewer things say some of them again in fewer words


def phrase_conversation(desk: Desk, scene_index: int, number: int, canvas: int) -> Conversation:
    """Phrase `number` of a scene; the first brings the picture along."""
    scene = desk.scene(scene_index)
    pictures = (Picture(draw(scene, canvas)),) if number == 0 else ()
    group = f"{desk.split}-{desk.seed}-{scene_index}"
    turns = (user(*pictures), assistant(phrase(scene, number)))
    return Conversation(turns, id=f"{scene_index}.{number}", source=f"desk/{desk.split}/{desk.seed}", meta={"group": group})


def phrase(scene: Scene, number: int) -> str:
    """A thing with its place; once every thing has had its phrase, digits again without their place, then without their ink."""
    things = scene.things
    if number < len(things):
        return f"{with_article(things[number])} {place(things[number])}"
    again = number - len(things)
    digit: DigitObject = scene.digits[again % len(scene.digits)]
    return with_article(digit) if again < len(scene.digits) else f"a {digit.value} {place(digit)}"
