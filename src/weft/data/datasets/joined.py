"""Several conversations in a row as one: documents out of single pictures and their texts, or examples before a question."""

from __future__ import annotations

from dataclasses import dataclass

from weft.core.conversation import Conversation, Message, Part, Region
from weft.core.errors import ConfigError, DataError
from weft.data.dataset import Dataset


class Joined(Dataset):
    """Every `number` conversations of another data set, one behind the other; what is left over at its end is left out.

    Raises: ConfigError where there are too few; DataError for one that begins with a system turn.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        of: Dataset.Config
        number: int

        def build(self) -> Joined:
            return Joined(self)

    def __init__(self, config: Config) -> None:
        self.config = config
        self.single = config.of.build()
        if config.number < 1 or len(self) < 1:
            raise ConfigError(f"{config.number} conversations in a row need as many, the data set has {len(self.single)}")

    def __len__(self) -> int:
        return len(self.single) // max(self.config.number, 1)

    def __getitem__(self, index: int) -> Conversation:
        first = self.config.number * index
        single = [self.single[first + place] for place in range(self.config.number)]
        messages: list[Message] = []
        num_media = 0
        for conversation in single:
            if any(message.role == "system" for message in conversation.messages):
                raise DataError(f"sample {conversation.name}: the system speaks, which only the first of a row could")
            messages += (_counted_on(message, num_media) for message in conversation.messages)
            num_media += sum(1 for _ in conversation.media())
        return Conversation(tuple(messages), id=single[0].id, source=single[0].source)


def _counted_on(message: Message, num_media: int) -> Message:
    """The message behind `num_media` media of others; its regions name its own."""

    def moved(part: Part) -> Part:
        return Region(part.coordinates, part.media + num_media) if isinstance(part, Region) else part

    return Message(message.role, tuple(map(moved, message.parts)), message.train)
