"""Conversations in a row: pictures, texts and the numbers of regions."""

from dataclasses import dataclass

import pytest

from weft.core.conversation import Conversation, Media, Region, Text, assistant, system, user
from weft.core.errors import ConfigError, DataError
from weft.data.dataset import Dataset
from weft.data.datasets.joined import Joined


class Counted(Dataset):
    """Seven conversations about a picture each, the last one with a system turn."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        def build(self):
            return Counted()

    def __len__(self):
        return 7

    def __getitem__(self, index):
        turns = (user(Media(f"{index}.png"), "where?"), assistant(Region((0.1, 0.2, 0.3, 0.4)), f" {index}"))
        return Conversation((*([system("S")] if index == 6 else []), *turns), id=str(index), source="counted")


def test_three_in_a_row_with_regions_of_their_own_pictures():
    joined = Joined.Config(of=Counted.Config(), number=3).build()
    assert len(joined) == 2
    document = joined[1]
    assert (document.id, document.source) == ("3", "counted")
    assert [medium.source for medium in document.media()] == ["3.png", "4.png", "5.png"]
    assert [message.role for message in document.messages] == ["user", "assistant"] * 3
    regions = [part for message in document.messages for part in message.parts if isinstance(part, Region)]
    assert [region.media for region in regions] == [0, 1, 2]
    assert all(message.train for message in document.messages[1::2])
    assert document.messages[3].parts[1] == Text(" 4")


def test_what_cannot_stand_in_a_row_is_refused():
    with pytest.raises(ConfigError, match="8 conversations in a row need as many, the data set has 7"):
        Joined.Config(of=Counted.Config(), number=8).build()
    with pytest.raises(DataError, match=r"counted:6.*the system speaks"):
        Joined.Config(of=Counted.Config(), number=7).build()[0]
