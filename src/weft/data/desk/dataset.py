"""The desk as a data set that a recipe can name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from weft.core.conversation import Conversation
from weft.data.boxes import BinnedBoxes, Boxes
from weft.data.dataset import Dataset
from weft.data.desk.blind import without_pictures
from weft.data.desk.phrases import PHRASES, phrase_conversation
from weft.data.desk.scene import MAX_DIGITS
from weft.data.desk.world import Desk


class DeskConversations(Dataset):
    """Conversations of a desk without end; `epoch` says how many make one by convention.

    `kind` is "dialogue" (a picture and several turns), "blind" (the same dialogue without its picture: what a text-only
    baseline may learn from), "text" (the scene written out instead of drawn), "caption" (a picture and a caption) or "phrases"
    (`PHRASES` conversations in a row each name one thing of one picture; the first holds the picture, and all its group).
    """

    endless: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        split: Literal["train", "validation", "test"] = "train"
        kind: Literal["dialogue", "blind", "text", "caption", "phrases"] = "dialogue"
        seed: int = 0
        num_turns: int = 8
        conversations_per_scene: int = 1
        mix: Mapping[str, float] = field(default_factory=dict)  # weight by question type; empty: every type equally
        canvas: int = 64
        min_digits: int = 1
        max_digits: int = MAX_DIGITS
        boxes: Boxes = BinnedBoxes()
        epoch: int = 100_000

        def build(self) -> DeskConversations:
            return DeskConversations(self)

    def __init__(self, config: Config) -> None:
        self.config = config
        self.desk = Desk(
            config.split,
            config.seed,
            kind="text" if config.kind == "text" else "caption" if config.kind == "caption" else "dialogue",
            num_turns=config.num_turns,
            conversations_per_scene=config.conversations_per_scene,
            mix=config.mix or None,
            canvas=config.canvas,
            min_digits=config.min_digits,
            max_digits=config.max_digits,
            render=config.boxes.render,
        )

    def __len__(self) -> int:
        return self.config.epoch

    def __getitem__(self, index: int) -> Conversation:
        if self.config.kind == "phrases":
            return phrase_conversation(self.desk, *divmod(index, PHRASES), self.config.canvas)
        conversation = self.desk[index]
        return without_pictures(conversation, self.config.boxes.render) if self.config.kind == "blind" else conversation
