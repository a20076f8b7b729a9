"""Single digits on the desk, classified by a dual encoder that was never trained to classify."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import product
from typing import cast

from weft.core.conversation import Conversation, Media, user
from weft.core.errors import ConfigError
from weft.data.desk.draw import draw
from weft.data.desk.questions import place, with_article
from weft.data.desk.scans import Split
from weft.data.desk.scene import INKS, DigitObject, Scene
from weft.data.desk.world import Desk
from weft.evaluation.benchmark import Benchmark, Item, ReadBox, Truth
from weft.evaluation.classes import Classes, Ranked, Write

PLACES = tuple(" ".join(f"{row} {column}".split()) for row in ("top", "middle", "bottom") for column in ("left", "", "right"))
TOLD: Mapping[str, tuple[str, ...]] = {"digit": tuple("0123456789"), "ink": tuple(INKS), "place": PLACES}
CHANCE = "random_class"
_NUM_TRAINING_SCENES = 1000
_ANYWHERE = (0.0, 0.0, 1.0, 1.0)
TITLES = {"digit": "Which digit", "ink": "Which ink", "place": "Which of nine places"}
NOTES = {
    "held_out": "No scan of handwriting, no layout and no random draw of these pictures occurs in training or validation.",
    CHANCE: "any class at random",
}


class DeskZeroShot(Benchmark):
    """`num_per_type` held-out desks with one digit each, to be told its value, its ink and its place.

    The texts of a class are what training captions say of such a thing, with all that the class leaves open: the vector of
    the class 7 is the mean over inks and places of "a red 7 top left". `top` best classes count; equal scores count by chance.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Benchmark.Config):
        num_per_type: int = 200
        top: int = 1
        split: str = "test"
        seed: int = 0
        canvas: int = 64

        def __post_init__(self) -> None:
            if self.num_per_type < 2 or self.top < 1:
                raise ConfigError(
                    "the zero-shot desk needs num_per_type of 2 and more and top of 1 and more, got "
                    f"{self.num_per_type} and {self.top}"
                )

        def build(self) -> DeskZeroShot:
            return DeskZeroShot(self)

    name = "desk-zero-shot"
    titles = TITLES
    notes = NOTES

    def __init__(self, config: Config) -> None:
        self.config = config
        self.top = config.top
        self.classes = {type: Classes(names, _templates(type)) for type, names in TOLD.items()}

    def items(self) -> tuple[Item, ...]:
        return self._items

    def score(self, item: Item, reply: str, read_box: ReadBox) -> float:
        return Ranked(reply).mark(cast(str, item.truth), self.top)

    def most_frequent(self) -> Mapping[str, Truth]:
        return _most_frequent(self.top)

    def expectations(self) -> Mapping[str, Mapping[str, float]]:
        num_classes = {type: len(classes.names) for type, classes in self.classes.items()}
        return {CHANCE: {item.id: min(1.0, self.top / num_classes[item.type]) for item in self._items}}

    @cached_property
    def _items(self) -> tuple[Item, ...]:
        settings = self.config
        desk = Desk(cast(Split, settings.split), settings.seed, max_digits=1, max_shapes=0)
        return tuple(
            self._item(desk.scene(number * settings.num_per_type + index), type, index)
            for number, type in enumerate(self.classes)  # every type has scenes of its own, so that their means are independent
            for index in range(settings.num_per_type)
        )

    def _item(self, scene: Scene, type: str, index: int) -> Item:
        settings = self.config
        id = f"{settings.split}-{settings.seed}-{type}-{index}"
        picture = Media(draw(scene, settings.canvas))
        return Item(id, type, id, Conversation((user(picture),), id=id, meta={"classes": type}), _truths(scene)[type])


def _truths(scene: Scene) -> dict[str, str]:
    digit = scene.digits[0]
    return {"digit": str(digit.value), "ink": digit.ink, "place": place(digit)}


def _templates(about: str) -> tuple[Write, ...]:
    """A caption for everything that a class leaves open."""
    others = [type for type in TOLD if type != about]
    known = (dict(zip(others, values, strict=True)) for values in product(*(TOLD[type] for type in others)))
    return tuple(partial(_caption, about, facts) for facts in known)


def _caption(about: str, known: Mapping[str, str], name: str) -> str:
    """What training says of a thing: "a red 7 top left"."""
    facts = {**known, about: name}
    return f"{with_article(DigitObject(int(facts['digit']), facts['ink'], _ANYWHERE, 0))} {facts['place']}"


@cache
def _most_frequent(top: int) -> Mapping[str, Truth]:
    desk = Desk("train", max_digits=1, max_shapes=0)
    seen: dict[str, Counter[str]] = {}
    for index in range(_NUM_TRAINING_SCENES):
        for type, truth in _truths(desk.scene(index)).items():
            seen.setdefault(type, Counter())[truth] += 1
    by_type = {type: [name for name, _ in counts.most_common(top)] for type, counts in seen.items()}
    return {type: Ranked.in_order(names).text for type, names in by_type.items()}
