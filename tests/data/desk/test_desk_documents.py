"""Documents of the desk: two or three pictures, each before its caption, and words about all of them."""

from itertools import pairwise

import numpy as np
import pytest

from weft.core.conversation import Media, Text
from weft.data.desk.documents import NUMBERS, PLACES, DeskDocuments
from weft.data.interleaving import Interleaving


def built(**options):
    return DeskDocuments.Config(**options).build()


def test_a_document_is_pictures_before_their_captions():
    desk = built()
    numbers, closings = [], []
    for index in range(40):
        document = desk[index]
        opening, *shown = document.messages
        (words,) = opening.parts
        assert opening.train and words.text in [f"{number} desks:" for number in NUMBERS]
        numbers.append(sum(1 for _ in document.media()))
        assert words.text.startswith(NUMBERS[numbers[-1] - 2]) and len(shown) == 2 * numbers[-1]
        for place, (picture, caption) in enumerate(zip(shown[::2], shown[1::2], strict=True)):
            ((medium,), (text,)) = picture.parts, caption.parts
            scene = desk.desk.scene(3 * index + place)
            assert isinstance(medium, Media) and isinstance(text, Text) and caption.train and not picture.train
            assert np.array_equal(medium.source, desk.desk.picture(3 * index + place))
            assert all(thing.name in text.text for thing in scene.digits)
        closings.append("most digits" in document.messages[-1].parts[0].text)
    assert set(numbers) == {2, 3} and 5 < sum(closings) < 40


def test_the_end_is_true():
    desk = built(seed=3)
    for index in range(60):
        document = desk[index]
        counts = [len(desk.desk.scene(3 * index + place).digits) for place in range(sum(1 for _ in document.media()))]
        said = document.messages[-1].parts[0].text.partition("most digits: ")[2]
        assert said == (PLACES[counts.index(max(counts))] if counts.count(max(counts)) == 1 else "")


def test_documents_are_the_same_everywhere_and_apart_by_split_and_seed():
    again = [[m.parts for m in built()[i].messages] for i in range(5)]
    for one, other in pairwise((again, [[m.parts for m in built()[i].messages] for i in range(5)])):
        assert [[str(p) for parts in document for p in parts] for document in one] == [
            [str(p) for parts in document for p in parts] for document in other
        ]
    for changed in ({"split": "test"}, {"seed": 1}):
        assert str(built(**changed)[0].messages) != str(built()[0].messages)
    with pytest.raises(IndexError):
        built()[-1]


def test_documents_are_written_as_each_system_reads_them():
    read = built(interleaving=Interleaving(opening="read"))[0]
    assert [type(part) for part in read.messages[0].parts] == [Text, Media] and not read.messages[0].train
    flamingo = built(interleaving=Interleaving(next_share=1.0, max_media=1, random_start=True))
    for index in range(20):
        document = flamingo[index]
        assert document.meta == {"document": True, "visibility": "next"} and sum(1 for _ in document.media()) == 1
    none_is_left_out = built(interleaving=Interleaving(single_share=0.0, max_media=1))
    assert sum(1 for _ in none_is_left_out[0].media()) in (2, 3)
