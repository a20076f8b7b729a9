"""Desks and their captions, each to be found by the other: what a dual encoder is trained for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from weft.core.conversation import Media
from weft.core.errors import ConfigError
from weft.data.desk.draw import draw
from weft.data.desk.questions import detailed_caption
from weft.data.desk.scans import Split
from weft.data.desk.scene import MAX_DIGITS, MAX_SHAPES
from weft.data.desk.world import Desk
from weft.evaluation.retrieval import CHANCE, RetrievalBenchmark

_SCENES_PER_PAIR = 20
NOTES = {
    "held_out": "No scan of handwriting, no layout and no random draw of these pictures occurs in training or validation.",
    CHANCE: "all pictures or captions in random order",
}


class DeskRetrieval(RetrievalBenchmark):
    """`num_pairs` held-out desks and their captions: recall at 1, 5 and 10 of pictures for captions and captions for pictures.

    A caption says everything that lies on the desk with its place, as half of the captions in training do. No two desks have
    the same caption, so that exactly one is right.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(RetrievalBenchmark.Config):
        num_pairs: int = 500
        split: str = "test"
        seed: int = 0
        canvas: int = 64
        max_digits: int = MAX_DIGITS
        max_shapes: int = MAX_SHAPES

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.num_pairs < 2:
                raise ConfigError(f"the desk retrieval needs num_pairs of 2 and more, got {self.num_pairs}")

        def build(self) -> DeskRetrieval:
            return DeskRetrieval(self)

        def read(self) -> Iterator[tuple[Media, str]]:
            desk = Desk(cast(Split, self.split), self.seed, max_digits=self.max_digits, max_shapes=self.max_shapes)
            told: set[str] = set()
            for scene in map(desk.scene, range(_SCENES_PER_PAIR * self.num_pairs)):
                if (caption := detailed_caption(scene)) not in told:
                    yield Media(draw(scene, self.canvas)), caption
                    told.add(caption)
                if len(told) == self.num_pairs:
                    return
            raise ConfigError(
                f"desks of at most {self.max_digits} digits and {self.max_shapes} shapes gave {len(told)} different captions, "
                f"expected num_pairs={self.num_pairs}; set it lower, or allow more things"
            )

    name = "desk-retrieval"
    medium, text = "picture", "caption"
    notes = NOTES
