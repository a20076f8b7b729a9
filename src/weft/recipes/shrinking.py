"""A published recipe at CPU size: its own stages, only smaller and on the desk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

from weft.core.conversation import Text
from weft.core.interfaces import System
from weft.data.boxes import FractionBoxes
from weft.data.dataset import Dataset
from weft.data.datasets.mixture import Mixture
from weft.data.desk.dataset import DeskConversations
from weft.data.images import ImageTransform
from weft.data.media_transform import MediaTransform
from weft.data.tokenizers import Tokenizer
from weft.training.stage import Recipe, Stage

TINY_VOCABULARY = 512
_RATE = 2e-3
_WARMUP = 0.1
_EPOCH = 1000
TINY_SPECIAL = (
    "<pad>", "<s>", "</s>", "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
)  # fmt: skip
TINY_ADDED = (
    "<|im_start|>", "<|im_end|>", "<end_of_utterance>", "<fake_token_around_image>", "<|endofchunk|>", "<|endoftext|>",
    "<ref>", "</ref>", "<box>", "</box>", "<img>", "</img>", "<image>",
)  # fmt: skip
"""Special tokens with the last ids, as where a published system adds them to its language model's tokenizer."""


def shrunk(
    recipe: Recipe, systems: Mapping[str, System.Config], data: Mapping[str, Dataset.Config], steps: int, image_size: int
) -> Recipe:
    """The recipe with small systems, desk data and a handful of steps by stage.

    What trains, objective, template, kind of optimizer, decay and what a stage takes from another stay as published; the rate
    and the warm-up fit the few steps.
    """

    def small(stage: Stage) -> Stage:
        transforms = {name: resized(transform, image_size) for name, transform in stage.processor.transforms.items()}
        return replace(
            stage,
            system=systems[stage.name],
            processor=replace(stage.processor, transforms=transforms),
            data=data[stage.name],
            batch_size=4,
            micro_batch_size=None,
            steps=steps,
            epochs=None,
            max_tokens=512,
            optimizer=replace(stage.optimizer, learning_rate=_RATE),
            schedule=replace(stage.schedule, warmup=_WARMUP),
            precision="fp32",
        )

    return replace(recipe, size="tiny", stages=tuple(small(stage) for stage in recipe.stages))


def resized(transform: MediaTransform, image_size: int) -> MediaTransform:
    """The transform for smaller pictures, also where it sees them through a view: tiles, frames, pictures with boxes."""
    if isinstance(transform, ImageTransform):
        return replace(transform, size=image_size)
    parts = {field.name: getattr(transform, field.name) for field in fields(transform)}
    views = {name: replace(part, size=image_size) for name, part in parts.items() if isinstance(part, ImageTransform)}
    return replace(transform, **views)


def with_fast_gates(recipe: Recipe) -> Recipe:
    """A small recipe whose gates open faster than the rest learns: a handful of steps moves a number that starts at zero too
    little for anything behind it to be learned."""
    stages = (replace(stage, optimizer=replace(stage.optimizer, rates={"*_gate": 50.0})) for stage in recipe.stages)
    return replace(recipe, stages=tuple(stages))


def on_desk(mixture: Mixture.Config, **parts: Dataset.Config) -> Mixture.Config:
    """A mixture with the desk in the place of each part's data; proportions and weights stay as published."""
    replaced = {name: replace(part, data=parts[name]) for name, part in mixture.parts.items()}
    return replace(mixture, parts=replaced, epoch=_EPOCH)


def desk_captions() -> DeskConversations.Config:
    """A drawn desk and a caption of it."""
    return DeskConversations.Config(kind="caption", epoch=1000)


def desk_dialogues() -> DeskConversations.Config:
    """A drawn desk and questions about it, boxes written as fractions."""
    return DeskConversations.Config(kind="dialogue", num_turns=3, boxes=FractionBoxes(), epoch=1000)


def tiny_tokenizer(num_scenes: int = 200) -> Tokenizer:
    """A tokenizer for the desk, trained on what its training scenes say."""
    desk = DeskConversations.Config(kind="text", num_turns=3, boxes=FractionBoxes()).build()
    texts = (
        part.text
        for index in range(num_scenes)
        for message in desk[index].messages
        for part in message.parts
        if isinstance(part, Text)
    )
    words = Tokenizer.train(texts, TINY_VOCABULARY - len(TINY_ADDED), TINY_SPECIAL).with_special(TINY_ADDED)
    return words.with_instructions(Tokenizer.train((), 256 + len(TINY_SPECIAL), TINY_SPECIAL))  # bytes, for a Q-Former
