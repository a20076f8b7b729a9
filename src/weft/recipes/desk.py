"""The demo: a small multimodal language model grown from nothing on the desk, stage by stage as the field does it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from weft.core.conversation import Conversation, Media, Region, Text
from weft.data.boxes import BinnedBoxes
from weft.data.desk.dataset import DeskConversations
from weft.data.desk.phrases import PHRASES
from weft.data.desk.questions import QUESTIONS
from weft.data.images import HALF, ImageTransform
from weft.data.processor import Processor
from weft.data.tokenizers import Tokenizer
from weft.encoders.mean_text import MeanText
from weft.encoders.siglip import SiglipVision
from weft.fusion.token_concatenation import TokenConcatenation
from weft.language_models.decoder import Decoder
from weft.objectives.late_interaction import LateInteraction
from weft.objectives.next_token import NextToken
from weft.projectors.pixel_shuffle import PixelShuffle
from weft.projectors.positioned import Positioned
from weft.systems.dual_encoder import DualEncoder
from weft.systems.multimodal_lm import MultimodalLM, Stream
from weft.training.stage import Optimizer, Recipe, Schedule, Stage

MINUTES = 8.0  # what the steps below are meant for, on two CPU cores with bf16 instructions
BASELINE = "language"  # the stage whose model is also the text-only baseline
VOCABULARY = 640
BOXES = BinnedBoxes(bins=32)
SPECIAL = ("<pad>", "<s>", "</s>", "<image>", "<|user|>", "<|assistant|>", "<|end|>", *BOXES.special_tokens)
TRANSFORM = {"image": ImageTransform(size=64, resize="direct", mean=HALF, std=HALF)}
CAPTIONS = Processor.Config(template="clip_text", transforms=TRANSFORM, boxes=BOXES)
CHAT = Processor.Config(template="compact", transforms=TRANSFORM, boxes=BOXES)

TOWER = SiglipVision.Config(
    image_size=64,
    patch_size=8,
    width=128,
    num_layers=4,
    num_heads=2,
    feed_forward_width=384,
    activation="gelu",
    feature_layer="normed",
    pooling_head=False,
)
TEXT_TOWER = MeanText.Config(vocabulary=VOCABULARY, context=12)
LANGUAGE = Decoder.Config(
    vocabulary=VOCABULARY,
    width=128,
    num_layers=4,
    num_heads=4,
    num_key_value_heads=4,
    feed_forward_width=384,
    head_norm=True,
    context=512,
)
TWO_TOWERS = DualEncoder.Config(media=TOWER, text=TEXT_TOWER, initial_scale=20.0, initial_bias=-10.0, compared="features")
TEXT_ONLY = MultimodalLM.Config(language_model=LANGUAGE)
PROJECTOR = Positioned.Config(inner=PixelShuffle.Config(ratio=2), capacity=16)
SEEING = MultimodalLM.Config(
    language_model=LANGUAGE,
    streams={
        "image": Stream.Config(encoder=TOWER, projector=Positioned.Config(inner=PixelShuffle.Config(ratio=2), capacity=16))
    },
    fusions=(TokenConcatenation.Config(),),
)
MUON = Optimizer(name="muon", learning_rate=2e-3, matrix_rate=0.016, betas=(0.9, 0.95), clip_norm=1.0)

GENTLE_MUON = replace(MUON, learning_rate=1e-3, matrix_rate=0.006)
LOOKING_MUON = replace(GENTLE_MUON, matrix_rate=0.004)
LAST_MUON = replace(GENTLE_MUON, matrix_rate=0.005)

FOUR_TURNS: dict[str, Any] = {"num_turns": 4, "conversations_per_scene": 2}
TWO_TURNS: dict[str, Any] = {"num_turns": 2, "conversations_per_scene": 4}
NAMING = dict.fromkeys(("caption_short", "caption_detailed", "name_single", "refer"), 1.0)
"""What stage 1 asks, so that the projector's tokens say what lies where."""
LOOKING = dict.fromkeys(("name_single", "colour_of_digit", "presence"), 1.0)
"""What a fresh language model is asked first: finding a thing by its ink, and by its digit."""
EVERYTHING = dict.fromkeys(QUESTIONS, 1.0) | {
    "box": 2.5,
    "largest": 1.5,
    "caption_detailed": 1.5,
    "read": 1.5,
    "count": 3.0,
    "sum": 1.25,
}
"""What stage 2 asks: every type, those that are learned last more often."""


def tokenizer(num_scenes: int = 1500) -> Tokenizer:
    """A byte-level BPE trained on what the training desk says."""
    return Tokenizer.train(_texts(num_scenes), VOCABULARY, SPECIAL)


def _texts(num_scenes: int) -> Iterator[str]:
    for kind in ("caption", "text"):
        dataset = DeskConversations.Config(kind=kind, boxes=BOXES).build()  # type: ignore[arg-type]
        for index in range(num_scenes):
            yield from _words(dataset[index])


def _words(conversation: Conversation) -> Iterator[str]:
    for message in conversation.messages:
        for part in message.parts:
            if isinstance(part, Text):
                yield part.text
                yield f" {part.text}"
            else:
                assert isinstance(part, Media | Region)


def desk(minutes: float = MINUTES) -> Recipe:
    """The demo's recipe; `minutes` scales the steps of every stage."""

    def steps(full: int) -> int:
        return max(2, round(full * minutes / MINUTES))

    return Recipe(
        name="desk",
        about="a 2M-parameter multimodal language model grown from nothing on handwriting",
        stages=(
            Stage(
                name="tower",
                title="Contrastive pre-training: an image tower learns which phrases belong to a picture",
                system=TWO_TOWERS,
                train=("*",),
                processor=CAPTIONS,
                data=DeskConversations.Config(kind="phrases", min_digits=4),
                validation=DeskConversations.Config(kind="phrases", split="validation", min_digits=4),
                objective=LateInteraction.Config(),
                batch_size=128 * PHRASES,
                steps=steps(400),
                max_tokens=12,
                optimizer=MUON,
                schedule=Schedule(decay="trapezoid", warmup=20, cooldown=0.5),
            ),
            Stage(
                name=BASELINE,
                title="A language model learns the desk's words from dialogues without pictures",
                system=TEXT_ONLY,
                train=("*",),
                new=("*",),
                processor=CHAT,
                data=DeskConversations.Config(kind="blind", boxes=BOXES, **FOUR_TURNS),
                validation=DeskConversations.Config(kind="blind", split="validation", boxes=BOXES, **FOUR_TURNS),
                objective=NextToken.Config(),
                batch_size=24,
                steps=steps(150),
                max_tokens=192,
                packing=True,
                optimizer=MUON,
                schedule=Schedule(decay="trapezoid", warmup=20, cooldown=0.3),
            ),
            Stage(
                name="align",
                title="Stage 1: the projector learns to say what lies where",
                system=SEEING,
                train=("streams.image.projector.*", "language_model.*"),
                takes={
                    "tower": {"media.*": "streams.image.encoder."},
                    BASELINE: {"language_model.*": "language_model."},
                },
                new=("streams.image.projector.*",),
                processor=CHAT,
                data=DeskConversations.Config(kind="dialogue", seed=1, mix=NAMING, **TWO_TURNS),
                validation=DeskConversations.Config(kind="dialogue", split="validation", mix=NAMING, **TWO_TURNS),
                objective=NextToken.Config(),
                batch_size=48,
                steps=steps(600),
                max_tokens=192,
                packing=True,
                optimizer=GENTLE_MUON,
                schedule=Schedule(decay="trapezoid", warmup=20, cooldown=0.3),
            ),
            Stage(
                name="look",
                title="A fresh language model learns to look, on tokens that already say what lies where",
                system=SEEING,
                train=("language_model.*",),
                takes={"align": {"streams.*": "streams."}},
                new=("language_model.*",),
                processor=CHAT,
                data=DeskConversations.Config(kind="dialogue", seed=2, mix=LOOKING, **TWO_TURNS),
                validation=DeskConversations.Config(kind="dialogue", split="validation", mix=LOOKING, **TWO_TURNS),
                objective=NextToken.Config(),
                batch_size=48,
                steps=steps(350),
                max_tokens=192,
                packing=True,
                optimizer=LOOKING_MUON,
                schedule=Schedule(decay="constant", warmup=20),
            ),
            Stage(
                name="instruct",
                title="Stage 2: instruction tuning, projector and language model learn together",
                system=SEEING,
                train=("streams.image.projector.*", "language_model.*"),
                processor=CHAT,
                data=DeskConversations.Config(kind="dialogue", seed=3, mix=EVERYTHING, **FOUR_TURNS),
                validation=DeskConversations.Config(kind="dialogue", split="validation", **FOUR_TURNS),
                objective=NextToken.Config(),
                batch_size=24,
                steps=steps(1400),
                max_tokens=192,
                packing=True,
                optimizer=LAST_MUON,
                schedule=Schedule(decay="trapezoid", warmup=20, cooldown=0.6),
            ),
        ),
    )
