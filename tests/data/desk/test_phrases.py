"""Phrases: several short texts a picture, the picture once."""

from weft.core.conversation import Text
from weft.data.desk.dataset import DeskConversations
from weft.data.desk.phrases import PHRASES, phrase
from weft.data.desk.questions import place


def test_the_first_phrase_brings_the_picture_and_all_share_its_group():
    data = DeskConversations.Config(kind="phrases", seed=3).build()
    for scene in range(5):
        rows = [data[scene * PHRASES + number] for number in range(PHRASES)]
        assert [len(list(row.media())) for row in rows] == [1] + [0] * (PHRASES - 1)
        assert len({row.meta["group"] for row in rows}) == 1
    assert data[0].meta["group"] != data[PHRASES].meta["group"]


def test_every_phrase_is_true_of_its_scene():
    desk = DeskConversations.Config(kind="phrases", seed=4).build().desk
    for index in range(60):
        scene = desk.scene(index)
        facts = {f"{thing.name} {place(thing)}" for thing in scene.things} | {d.name for d in scene.digits}
        facts |= {f"{d.value} {place(d)}" for d in scene.digits}
        for number in range(PHRASES):
            assert phrase(scene, number).split(" ", 1)[1] in facts


def test_a_scene_can_be_made_to_hold_many_digits():
    full = DeskConversations.Config(kind="phrases", min_digits=4).build().desk
    assert all(len(full.scene(i).digits) == 4 for i in range(20))
    row = DeskConversations.Config(kind="phrases").build()[0]
    assert isinstance(row.messages[1].parts[0], Text)
