"""Questions about a scene: one function a type, each from (scene, dice) to a question with its exact answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from weft.core.conversation import Part, Region, Text
from weft.core.errors import unknown_name
from weft.data.desk.dice import Dice
from weft.data.desk.scene import INKS, Box, DigitObject, Scene, Thing


@dataclass(frozen=True)
class Question:
    """One turn's worth: what the user asks, what the assistant should say, and the truth by which it is scored."""

    type: str
    prompt: tuple[Part, ...]
    answer: tuple[Part, ...]
    truth: str | Box


Asker = Callable[[Scene, Dice], Question | None]
"""A question type; None where the scene does not allow the question."""


def name_single(scene: Scene, dice: Dice) -> Question | None:
    """The digit of a named ink."""
    digit = dice.choice(scene.digits)
    ask = dice.choice(("Which digit is {}?", "What is the {} digit?", "Name the {} digit."))
    return _question("name_single", ask.format(digit.ink), str(digit.value))


def leftmost(scene: Scene, dice: Dice) -> Question | None:
    """The digit furthest to the left, of at least two."""
    if len(scene.digits) < 2:
        return None
    ask = dice.choice(("Which digit is leftmost?", "Which digit is furthest to the left?", "Name the leftmost digit."))
    return _question("leftmost", ask, str(scene.left_to_right[0].value))


def rightmost(scene: Scene, dice: Dice) -> Question | None:
    """The digit furthest to the right, of at least two."""
    if len(scene.digits) < 2:
        return None
    ask = dice.choice(("Which digit is rightmost?", "Which digit is furthest to the right?", "Name the rightmost digit."))
    return _question("rightmost", ask, str(scene.left_to_right[-1].value))


def largest(scene: Scene, dice: Dice) -> Question | None:
    """The tallest digit, of at least two."""
    if len(scene.digits) < 2:
        return None
    ask = dice.choice(("Which digit is largest?", "What is the largest digit in size?", "Name the biggest digit."))
    return _question("largest", ask, str(scene.largest.value))


def count(scene: Scene, dice: Dice) -> Question | None:
    """The number of digits; uniform over 1 to 4, because scenes are."""
    ask = dice.choice(("How many digits are there?", "How many digits do you see?", "Count the digits."))
    return _question("count", ask, str(len(scene.digits)))


def count_colour(scene: Scene, dice: Dice) -> Question | None:
    """The number of things, digits or shapes, of one ink; the number is drawn first, then an ink that has it."""
    inks = [thing.ink for thing in scene.things]
    by_number: dict[int, list[str]] = {}
    for ink in INKS:
        by_number.setdefault(inks.count(ink), []).append(ink)
    ink = dice.choice(by_number[dice.choice(sorted(by_number))])
    ask = dice.choice(("How many things are {}?", "How many {} things are there?", "Count the {} things."))
    return _question("count_colour", ask.format(ink), str(inks.count(ink)))


def colour_of_digit(scene: Scene, dice: Dice) -> Question | None:
    """The ink of a digit that occurs once."""
    unique = scene.unique_values()
    if not unique:
        return None
    digit = dice.choice(unique)
    ask = dice.choice(("What colour is the {}?", "Which colour does the {} have?", "Name the colour of the {}."))
    return _question("colour_of_digit", ask.format(digit.value), digit.ink)


def presence(scene: Scene, dice: Dice) -> Question | None:
    """Whether a digit is there: yes half of the time."""
    there = {d.value for d in scene.digits}
    if dice.coin():
        value, truth = dice.choice(sorted(there)), "yes"
    else:
        value, truth = dice.choice([v for v in range(10) if v not in there]), "no"
    ask = dice.choice(("Is there any {}?", "Do you see any {}?", "Does the desk show any {}?"))
    return _question("presence", ask.format(value), truth)


def left_of(scene: Scene, dice: Dice) -> Question | None:
    """Whether one digit is left of another; the pair comes in random order, so yes and no are equally likely."""
    pair = _pair(scene, dice)
    return None if pair is None else _left_of(pair[0], pair[1], dice)


def left_of_mirrored(scene: Scene, dice: Dice) -> tuple[Question, Question] | None:
    """One pair asked both ways in the same words: a reader of words alone gets exactly one of the two right."""
    pair = _pair(scene, dice)
    if pair is None:
        return None
    wording = dice.integer(0, 2)
    return _left_of(pair[0], pair[1], None, wording), _left_of(pair[1], pair[0], None, wording)


def _pair(scene: Scene, dice: Dice) -> list[DigitObject] | None:
    return dice.sample(scene.digits, 2) if len(scene.digits) > 1 else None


def _left_of(first: DigitObject, second: DigitObject, dice: Dice | None, wording: int = 0) -> Question:
    wording = dice.integer(0, 2) if dice is not None else wording
    ask = ("Is the {} digit left of the {} digit?", "Is the {} digit to the left of the {} one?")[wording]
    truth = "yes" if first.box[0] + first.box[2] < second.box[0] + second.box[2] else "no"
    return _question("left_of", ask.format(first.ink, second.ink), truth)


def read(scene: Scene, dice: Dice) -> Question | None:
    """All digits from left to right."""
    ask = dice.choice(("Read the digits left to right.", "What do the digits read?", "Read the desk."))
    return _question("read", ask, " ".join(str(d.value) for d in scene.left_to_right))


def sum_pair(scene: Scene, dice: Dice) -> Question | None:
    """The sum of two digits named by their ink."""
    pair = _pair(scene, dice)
    if pair is None:
        return None
    ask = dice.choice(("What is {} plus {}?", "Add {} and {}.", "How much are {} and {} together?"))
    return _question("sum", ask.format(pair[0].ink, pair[1].ink), str(pair[0].value + pair[1].value))


def sum_reasoning(scene: Scene, dice: Dice) -> Question | None:
    """The sum of all digits, with the steps written out; the last number is the answer."""
    if len(scene.digits) < 2:
        return None
    values = [d.value for d in scene.left_to_right]
    total, steps = values[0], []
    for value in values[1:]:
        steps.append(f"{total} + {value} = {total + value}")
        total += value
    ask = dice.choice(("Add all digits step by step.", "What is the sum? Think step by step."))
    read_out = " ".join(str(v) for v in values)
    return _question("sum_reasoning", ask, f"{read_out} : {', '.join(steps)}. The sum is {total}", str(total))


def caption_short(scene: Scene, dice: Dice) -> Question | None:
    """The digits with their inks, left to right."""
    ask = dice.choice(("Describe the desk briefly.", "Write a short caption.", "Name the digits with their colours."))
    return _question("caption_short", ask, short_caption(scene))


def caption_detailed(scene: Scene, dice: Dice) -> Question | None:
    """Digits and shapes with their places; scored by the share of facts that are right."""
    ask = dice.choice(("Describe the desk in detail.", "Write a detailed caption.", "Say what lies where."))
    return _question("caption_detailed", ask, detailed_caption(scene))


def box(scene: Scene, dice: Dice) -> Question | None:
    """The box of the digit of a named ink, answered with a region."""
    digit = dice.choice(scene.digits)
    ask = dice.choice(("Where is the {} digit?", "Locate the {} digit.", "Point at the {} digit."))
    return Question("box", (Text(ask.format(digit.ink)),), (Region(digit.box),), digit.box)


def refer(scene: Scene, dice: Dice) -> Question | None:
    """The digit within a given region."""
    digit = dice.choice(scene.digits)
    before, after = dice.choice((("Which digit is at ", "?"), ("Name the digit at ", "."), ("What is at ", "?")))
    prompt = (Text(before), Region(digit.box), Text(after))
    return Question("refer", prompt, (Text(str(digit.value)),), str(digit.value))


QUESTIONS: dict[str, Asker] = {
    "name_single": name_single,
    "leftmost": leftmost,
    "rightmost": rightmost,
    "largest": largest,
    "count": count,
    "count_colour": count_colour,
    "colour_of_digit": colour_of_digit,
    "presence": presence,
    "left_of": left_of,
    "read": read,
    "sum": sum_pair,
    "sum_reasoning": sum_reasoning,
    "caption_short": caption_short,
    "caption_detailed": caption_detailed,
    "box": box,
    "refer": refer,
}
"""Every question type by its stable name."""


def asker(type: str) -> Asker:
    """The function of a question type.

    Raises: ConfigError for an unknown type.
    """
    if type not in QUESTIONS:
        raise unknown_name("desk question type", type, QUESTIONS)
    return QUESTIONS[type]


def short_caption(scene: Scene) -> str:
    """For example `a red 7, a blue 3`: the digits, left to right."""
    return ", ".join(with_article(d) for d in scene.left_to_right)


def detailed_caption(scene: Scene) -> str:
    """For example `a red 7 top left, a blue cup bottom right`: everything with its place, in raster order."""
    return ", ".join(f"{with_article(thing)} {place(thing)}" for thing in raster(scene))


def raster(scene: Scene) -> list[Thing]:
    """Digits and shapes as one reads a page: by quarter of the height, then from left to right."""
    return sorted(scene.things, key=lambda t: (int((t.box[1] + t.box[3]) * 2), t.box[0] + t.box[2]))


def with_article(thing: Thing) -> str:
    """For example `a red 7`, `an orange cup`."""
    return f"{'an' if thing.ink[0] in 'aeiou' else 'a'} {thing.name}"


def place(thing: Thing) -> str:
    """One of nine places, for example `top left`, `middle`, `bottom right`."""
    x, y = (thing.box[0] + thing.box[2]) / 2, (thing.box[1] + thing.box[3]) / 2
    row, column = min(2, int(y * 3)), min(2, int(x * 3))
    words = (("top", "middle", "bottom")[row], ("left", "", "right")[column])
    return " ".join(w for w in words if w)


def _question(type: str, prompt: str, answer: str, truth: str | None = None) -> Question:
    return Question(type, (Text(prompt),), (Text(answer),), answer if truth is None else truth)
