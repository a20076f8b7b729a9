"""The demo: a small multimodal language model grown from nothing on the desk, stage by stage as the field does it."""

from __future__ import annotations

from collections.abc import Iterator

from weft.core.conversation import Conversation, Media, Region, Text
from weft.data.boxes import BinnedBoxes
from weft.data.desk.dataset import DeskConversations
from weft.data.images import HALF, ImageTransform
from weft.data.processor import Processor
from weft.data.tokenizers import Tokenizer
from weft.encoders.siglip import SiglipText, SiglipVision
from weft.fusion.token_concatenation import TokenConcatenation
from weft.language_models.decoder import Decoder
from weft.objectives.contrastive import SoftmaxContrastive
from weft.objectives.next_token import NextToken
from weft.projectors.pixel_shuffle import PixelShuffle
from weft.projectors.positioned import Positioned
from weft.systems.dual_encoder import DualEncoder
from weft.systems.multimodal_lm import MultimodalLM, Stream
from weft.training.stage import Optimizer, Recipe, Schedule, Stage

MINUTES = 8.0  # what the steps below take on two CPU cores with bf16 instructions
BASELINE = "text_only"  # the stage that no later one takes from
VOCABULARY = 512
BOXES = BinnedBoxes(bins=32)
SPECIAL = ("<pad>", "<s>", "</s>", "<image>", "<|user|>", "<|assistant|>", "<|end|>", *BOXES.special_tokens)
TRANSFORM = {"image": ImageTransform(size=64, resize="direct", mean=HALF, std=HALF)}
CAPTIONS = Processor.Config(template="siglip_text", transforms=TRANSFORM, boxes=BOXES)
CHAT = Processor.Config(template="compact", transforms=TRANSFORM, boxes=BOXES)

TOWER = SiglipVision.Config(
    image_size=64, patch_size=8, width=128, num_layers=4, num_heads=2, feed_forward_width=384, feature_layer="normed"
)
TEXT_TOWER = SiglipText.Config(
    vocabulary=VOCABULARY, context=40, width=128, num_layers=2, num_heads=2, feed_forward_width=384, padding_token=0
)
LANGUAGE = Decoder.Config(
    vocabulary=VOCABULARY, width=192, num_layers=4, num_heads=3, num_key_value_heads=3, feed_forward_width=512, context=512
)
TWO_TOWERS = DualEncoder.Config(media=TOWER, text=TEXT_TOWER, initial_scale=10.0)
TEXT_ONLY = MultimodalLM.Config(language_model=LANGUAGE)
PROJECTOR = Positioned.Config(inner=PixelShuffle.Config(ratio=2), capacity=16)
SEEING = MultimodalLM.Config(
    language_model=LANGUAGE,
    streams={
        "image": Stream.Config(encoder=TOWER, projector=Positioned.Config(inner=PixelShuffle.Config(ratio=2), capacity=16))
    },
    fusions=(TokenConcatenation.Config(),),
)
MUON = Optimizer(name="muon", learning_rate=3e-3, matrix_rate=0.028, betas=(0.9, 0.95), clip_norm=1.0)


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
                title="An image tower learns to tell pictures apart by their captions",
                system=TWO_TOWERS,
                train=("*",),
                processor=CAPTIONS,
                data=DeskConversations.Config(kind="caption"),
                validation=DeskConversations.Config(kind="caption", split="validation"),
                objective=SoftmaxContrastive.Config(),
                batch_size=256,
                steps=steps(300),
                max_tokens=40,
                optimizer=MUON,
                schedule=Schedule(decay="trapezoid", warmup=20, cooldown=0.5),
            ),
            Stage(
                name="language",
                title="A language model learns the desk's words from scenes written as text",
                system=TEXT_ONLY,
                train=("*",),
                new=("*",),
                processor=CHAT,
                data=DeskConversations.Config(kind="text", boxes=BOXES),
                validation=DeskConversations.Config(kind="text", split="validation", boxes=BOXES),
                objective=NextToken.Config(),
                batch_size=32,
                steps=steps(400),
                max_tokens=224,
                optimizer=MUON,
                schedule=Schedule(decay="trapezoid", warmup=20, cooldown=0.3),
            ),
            Stage(
                name=BASELINE,
                title="Baseline: the same questions without pictures show what words alone can guess",
                system=TEXT_ONLY,
                train=("*",),
                takes={"language": {"*": ""}},
                processor=CHAT,
                data=DeskConversations.Config(kind="blind", seed=2, boxes=BOXES),
                validation=DeskConversations.Config(kind="blind", split="validation", boxes=BOXES),
                objective=NextToken.Config(),
                batch_size=32,
                steps=steps(150),
                max_tokens=192,
                optimizer=MUON,
                schedule=Schedule(decay="trapezoid", warmup=20, cooldown=0.5),
            ),
            Stage(
                name="align",
                title="Stage 1: the projector learns to speak the language model's tongue",
                system=SEEING,
                train=("streams.image.projector.*",),
                takes={
                    "tower": {"media.*": "streams.image.encoder."},
                    "language": {"language_model.*": "language_model."},
                },
                new=("streams.image.projector.*",),
                processor=CHAT,
                data=DeskConversations.Config(kind="dialogue", seed=1),
                validation=DeskConversations.Config(kind="dialogue", split="validation"),
                objective=NextToken.Config(),
                batch_size=32,
                steps=steps(60),
                max_tokens=192,
                optimizer=MUON,
                schedule=Schedule(decay="constant", warmup=10),
            ),
            Stage(
                name="instruct",
                title="Stage 2: instruction tuning, everything learns together",
                system=SEEING,
                train=("streams.image.projector.*", "streams.image.encoder.*", "!*.pooling.*", "language_model.*"),
                processor=CHAT,
                data=DeskConversations.Config(kind="dialogue", seed=2),
                validation=DeskConversations.Config(kind="dialogue", split="validation"),
                objective=NextToken.Config(),
                batch_size=32,
                steps=steps(1500),
                max_tokens=192,
                optimizer=MUON,
                schedule=Schedule(decay="trapezoid", warmup=20, cooldown=0.5),
            ),
        ),
    )
