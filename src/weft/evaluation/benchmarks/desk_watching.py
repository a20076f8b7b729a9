"""The desk's held-out questions about films, of scans of handwriting that no training ever saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from weft.data.desk.asking import Asking
from weft.data.desk.clips import NUM_FRAMES
from weft.data.desk.scans import Split
from weft.data.desk.watching import watching
from weft.evaluation.asked import AskedBenchmark
from weft.evaluation.evaluation import BLIND, MODEL

TITLES = {
    MODEL: "with the film",
    BLIND: "films shuffled",
    "direction": "Which way does it move?",
    "moving_ink": "Ink of what moves",
    "moving_digit": "Which digit moves?",
    "first_ink": "Ink of what comes first",
    "last_ink": "Ink of what comes last",
    "order": "Does one come before another?",
    "count": "Count the digits",
    "narration": "Tell what happens, exact",
}
NOTES = {
    "held_out": "No scan of handwriting, no layout that a film starts from and no random draw of these questions occurs in "
    "training or validation.",
}


class DeskWatchingBenchmark(AskedBenchmark):
    """`num_per_type` held-out questions of each type, each about a film of its own. Answers are marked by exact match."""

    @dataclass(frozen=True, kw_only=True)
    class Config(AskedBenchmark.Config):
        num_frames: int = NUM_FRAMES
        canvas: int = 64

        def build(self) -> DeskWatchingBenchmark:
            return DeskWatchingBenchmark(self)

        def asked(self) -> Asking[Any]:
            return watching(cast(Split, self.split), self.seed, self.num_frames, self.canvas)

        def trained(self) -> Asking[Any]:
            return watching("train")

    name = "desk-watching"
    max_new_tokens = 48
    titles = TITLES
    notes = NOTES
