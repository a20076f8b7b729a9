"""The desk's held-out questions about digits that are said, by speakers that no training ever heard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from weft.data.desk.asking import Asking
from weft.data.desk.listening import Kind, listening
from weft.data.desk.scans import Split
from weft.data.desk.speech import CLIP_SECONDS
from weft.evaluation.asked import AskedBenchmark
from weft.evaluation.evaluation import BLIND, MODEL

TITLES = {
    MODEL: "as it is heard",
    BLIND: "sounds shuffled",
    "first": "First digit",
    "last": "Last digit",
    "count": "Count the digits",
    "presence": "Is a digit said?",
    "order": "Is one said before another?",
    "transcript": "Write all down",
    "voice": "High or low voice",
    "shown": "Is what is said on the desk?",
    "ink": "Ink of what is said",
}
NOTES = {
    "held_out": "No speaker, no row of two or three digits and no random draw of these questions occurs in training or "
    "validation; nor does a scan or layout, where there are pictures.",
}


class DeskListeningBenchmark(AskedBenchmark):
    """`num_per_type` held-out questions of each type of a kind: about "speech", or about "speech_and_picture", where each takes
    both. Answers are marked by exact match."""

    @dataclass(frozen=True, kw_only=True)
    class Config(AskedBenchmark.Config):
        kind: Kind = "speech"
        seconds: float = CLIP_SECONDS

        def build(self) -> DeskListeningBenchmark:
            return DeskListeningBenchmark(self)

        def asked(self) -> Asking[Any]:
            return listening(cast(Split, self.split), self.seed, self.kind, self.seconds)

        def trained(self) -> Asking[Any]:
            return listening("train", 0, self.kind)

    name = "desk-listening"
    max_new_tokens = 24
    titles = TITLES
    notes = NOTES
