"""BLIP-2's first stage: a Q-Former learns beside a frozen encoder what a text would say of the picture.

Source: arXiv:2301.12597. The Q-Former starts from BERT-base (`--from streams.image.projector=bert-base-uncased`), its
cross-attention from nothing. The recipe `blip-2` begins with this stage too and goes on with what it learned. The published
pictures are cut at random and mirrored; here they are resized.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from weft.core.errors import unknown_name
from weft.core.interfaces import ModalityEncoder
from weft.data.datasets.llava_json import LlavaJson
from weft.data.images import ImageTransform
from weft.data.processor import Processor
from weft.encoders.clip import ClipVision
from weft.encoders.eva_clip import EvaClipVision
from weft.objectives.image_text_pretraining import ImageTextPretraining
from weft.projectors.qformer import QFormer
from weft.recipes.shrinking import TINY_ADDED, TINY_VOCABULARY, desk_captions, shrunk
from weft.systems.fusion_encoder import FusionEncoder
from weft.systems.multimodal_lm import Stream
from weft.training.stage import Optimizer, Recipe, Schedule, Stage

SIZES = ("vit-g", "vit-l")
BERT_VOCABULARY = 30_522  # of bert-base-uncased; [DEC] comes behind it
TEXT_TOKENS = 32


class _Published(NamedTuple):
    encoder: ModalityEncoder.Config
    batch_size: int


_TABLE = {
    "vit-g": _Published(EvaClipVision.Config.sizes()["g-14-blip-2"], 1_680),
    "vit-l": _Published(replace(ClipVision.Config.sizes()["l-14"], feature_layer=-2, keep_class_token=True), 2_320),
}


def blip_2_pretraining(size: str = "vit-g") -> Recipe:
    """BLIP-2's first stage beside a published encoder."""
    if size not in SIZES:
        raise unknown_name("size of blip-2-pretraining", size, SIZES)
    return Recipe(
        name="blip-2-pretraining",
        size=size,
        paper="2301.12597",
        about="a Q-Former beside a frozen encoder by contrast, matching and generation",
        stages=(represent(size),),
    )


def represent(size: str) -> Stage:
    """The stage beside a published encoder."""
    published = _TABLE[size]
    reader = QFormer.Config(vocabulary=BERT_VOCABULARY + 1, projected=False)
    return Stage(
        name="represent",
        title="contrast, matching and generation: the queries learn what a text says of a picture",
        system=FusionEncoder.Config(
            streams={"image": Stream.Config(encoder=published.encoder, projector=reader)}, start_token=BERT_VOCABULARY
        ),
        train=("*", "!streams.image.encoder.*"),
        processor=Processor.Config(template="blip_2_caption", transforms={"image": ImageTransform(size=224, resize="direct")}),
        data=LlavaJson.Config(path="image-text-pairs.json", images="images"),
        objective=ImageTextPretraining.Config(),
        batch_size=published.batch_size,
        steps=250_000,
        max_tokens=TEXT_TOKENS,
        optimizer=Optimizer(learning_rate=1e-4, betas=(0.9, 0.98), weight_decay=0.05, clip_norm=None),
        schedule=Schedule(decay="cosine", warmup=2000),
    )


def tiny() -> Recipe:
    """BLIP-2's first stage at CPU size."""
    system = tiny_system(replace(ClipVision.Config.tiny(), image_size=64, patch_size=16))
    small = shrunk(blip_2_pretraining(), {"represent": system}, {"represent": desk_captions()}, steps=40, image_size=64)
    return replace(small, stages=(livelier(small.stages[0]),))


def tiny_system(encoder: ModalityEncoder.Config) -> FusionEncoder.Config:
    """The published system, small, beside an encoder."""
    reader = replace(QFormer.Config.tiny(), vocabulary=TINY_VOCABULARY, context=64, projected=False)
    return FusionEncoder.Config(
        streams={"image": Stream.Config(encoder=encoder, projector=reader)},
        start_token=TINY_VOCABULARY - len(TINY_ADDED),
        embedding_width=16,
    )


def livelier(stage: Stage) -> Stage:
    """A small stage with pairs enough to tell from one another."""
    return replace(stage, batch_size=8, optimizer=replace(stage.optimizer, learning_rate=4e-3))
