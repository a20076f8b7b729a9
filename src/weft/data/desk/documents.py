"""Documents of the desk: several pictures among their captions, with words that only all of them together bear out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from weft.core.conversation import Conversation, Media
from weft.data.dataset import Dataset
from weft.data.desk.dice import Dice
from weft.data.desk.questions import detailed_caption, short_caption
from weft.data.desk.scans import Split, split_code
from weft.data.desk.scene import MAX_DIGITS, Scene
from weft.data.desk.world import Desk
from weft.data.interleaving import Interleaving, Piece

NUMBERS = ("two", "three")
PLACES = ("first", "second", "third")
_DOCUMENT = 16  # beside the other purposes of a random key


class DeskDocuments(Dataset):
    """Documents without end, each of two or three drawn desks; the same on every machine.

    An opening says how many there are, a caption stands behind every picture, and where one desk has the most digits the end
    says which. Split and seed hold scenes apart as for every desk. `epoch` says how many make one by convention.
    """

    endless: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        split: Split = "train"
        seed: int = 0
        canvas: int = 64
        max_digits: int = MAX_DIGITS
        interleaving: Interleaving = field(default_factory=Interleaving)
        epoch: int = 100_000

        def build(self) -> DeskDocuments:
            return DeskDocuments(self)

    def __init__(self, config: Config) -> None:
        self.config = config
        self.desk = Desk(config.split, config.seed, kind="caption", canvas=config.canvas, max_digits=config.max_digits)

    def __len__(self) -> int:
        return self.config.epoch

    def __getitem__(self, index: int) -> Conversation:
        """Document `index`; IndexError where it is negative."""
        if index < 0:
            raise IndexError(f"the desk's documents are indexed from 0, got {index}")
        c = self.config
        dice = Dice(split_code(c.split), c.seed, _DOCUMENT, index)
        number = dice.integer(2, 2 + len(NUMBERS))
        first = index * len(PLACES)
        scenes = [self.desk.scene(first + place) for place in range(number)]
        pieces: list[Piece] = [f"{NUMBERS[number - 2]} desks:"]
        for place, scene in enumerate(scenes):
            picture = self.desk.picture(first + place)
            pieces += [Media(picture), detailed_caption(scene) if dice.coin() else short_caption(scene)]
        pieces += [closing] if (closing := _most_digits(scenes)) else []
        document = c.interleaving.conversation(pieces, id=str(index), source=f"desk-documents/{c.split}/{c.seed}")
        if document is None:  # the draw began behind every text or left a document of one picture out
            whole = Interleaving(opening=c.interleaving.opening, between=c.interleaving.between)
            document = whole.conversation(pieces, id=str(index), source=f"desk-documents/{c.split}/{c.seed}")
            assert document is not None
        return document


def _most_digits(scenes: list[Scene]) -> str | None:
    """Which scene has the most digits, where one has."""
    counts = [len(scene.digits) for scene in scenes]
    most = max(counts)
    return f"most digits: {PLACES[counts.index(most)]}" if counts.count(most) == 1 else None
