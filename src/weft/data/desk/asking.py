"""Questions about the desk's sounds and clips: the same stream of dialogues and of evaluation items for each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from weft.core.conversation import Conversation, Media, Message, Text, assistant, user
from weft.core.errors import ConfigError, DataError, unknown_name
from weft.data.desk.dice import Dice
from weft.data.desk.questions import Question
from weft.data.desk.scans import Split, split_code

S = TypeVar("S")

_TRIES = 1000
_DIALOGUE, _ITEM = 0, 1


@dataclass(frozen=True)
class AskedItem:
    """One evaluation question: the conversation to continue, its truth, the question's type, and a stable id."""

    id: str
    type: str
    conversation: Conversation
    truth: str


@dataclass(frozen=True)
class Asking(Generic[S]):
    """Subjects without end and questions about them; everything follows from split, seed and index, on every machine.

    `world` is a number of its own for every kind of subject, so that no two kinds share a draw. `sample` draws a subject,
    `show` gives its media; its second argument is a random key that belongs to the subject alone. `questions` has a function
    a type: None where the subject does not allow the question.
    """

    name: str
    world: int
    split: Split
    seed: int
    sample: Callable[[Dice], S]
    show: Callable[[S, tuple[int, ...]], tuple[Media, ...]]
    questions: Mapping[str, Callable[[S, Dice], Question | None]]

    def __post_init__(self) -> None:
        split_code(self.split)

    def weights(self, mix: Mapping[str, float]) -> dict[str, float]:
        """How often each type is asked: the mix, or every type alike. Raises: ConfigError for a type that is unknown."""
        for type in mix:
            self._asker(type)
        return dict(mix) or dict.fromkeys(self.questions, 1.0)

    def dialogue(self, index: int, num_turns: int, mix: Mapping[str, float]) -> Conversation:
        """Conversation `index`: its media, and up to `num_turns` different questions with their answers.

        Raises: IndexError where the index is negative; DataError where no subject allows a question of the mix.
        """
        if index < 0:
            raise IndexError(f"{self.name} is indexed from 0, got {index}")
        if num_turns < 1:
            raise ConfigError(f"a conversation about {self.name} needs at least 1 turn, got num_turns={num_turns}")
        key = self._key(_DIALOGUE, index)
        dice, weights = Dice(*key), self.weights(mix)
        for _ in range(_TRIES):
            subject = self.sample(dice)
            if turns := self._turns(subject, dice, weights, num_turns):
                break
        else:
            raise DataError(f"conversation {index} of {self.name}: nothing allows a question of {', '.join(weights)}")
        messages: list[Message] = []
        for number, turn in enumerate(turns):
            shown = self.show(subject, key) if number == 0 else ()
            messages += [user(*shown, *turn.prompt), assistant(*turn.answer)]
        return Conversation(tuple(messages), id=str(index), source=self._source)

    def items(self, num_per_type: int, types: Sequence[str] = ()) -> list[AskedItem]:
        """`num_per_type` questions of each type, by default of all, in a fixed order, each about a subject of its own."""
        return [item for type in types or tuple(self.questions) for item in self._items_of(type, num_per_type)]

    def truths(self, type: str, count: int) -> list[str]:
        """The answers of the items of a type, without their media."""
        return [str(question.truth) for _, _, question in self._asked(type, count)]

    def _items_of(self, type: str, count: int) -> list[AskedItem]:
        items = []
        for number, (key, subject, question) in enumerate(self._asked(type, count)):
            id = f"{self.split}-{self.seed}-{type}-{number}"
            asked = Conversation((user(*self.show(subject, key), *question.prompt),), id=id, source=self._source)
            items.append(AskedItem(id, type, asked, str(question.truth)))
        return items

    def _asked(self, type: str, count: int) -> Iterator[tuple[tuple[int, ...], S, Question]]:
        """The first `count` subjects that allow a question of the type, each with its key and its question."""
        ask, number = self._asker(type), tuple(self.questions).index(type)
        index = found = 0
        while found < count:
            key = self._key(_ITEM, index, number)
            dice = Dice(*key)
            subject = self.sample(dice)
            question = ask(subject, dice)
            index += 1
            if question is not None:
                found += 1
                yield key, subject, question

    def _turns(self, subject: S, dice: Dice, weights: Mapping[str, float], num_turns: int) -> list[Question]:
        turns: list[Question] = []
        for _ in range(num_turns):
            question = self.questions[dice.weighted(tuple(weights), tuple(weights.values()))](subject, dice)
            if question is not None and all(question.prompt != earlier.prompt for earlier in turns):
                turns.append(question)
        return turns

    def _asker(self, type: str) -> Callable[[S, Dice], Question | None]:
        if type not in self.questions:
            raise unknown_name(f"question type of {self.name}", type, self.questions)
        return self.questions[type]

    def _key(self, purpose: int, *place: int) -> tuple[int, ...]:
        return (split_code(self.split), self.seed, self.world, purpose, *place)

    @property
    def _source(self) -> str:
        return f"{self.name}/{self.split}/{self.seed}"


def question(type: str, prompt: str, answer: str) -> Question:
    """A question in words whose answer is its truth."""
    return Question(type, (Text(prompt),), (Text(answer),), answer)
