"""LLaVA: CLIP's patches through one matrix into Vicuna, in two stages.

Source: arXiv:2304.08485. Stage 1 teaches the matrix on captions, stage 2 the matrix and the language model on instructions.
"""

from __future__ import annotations

from dataclasses import replace

from weft.core.errors import unknown_name
from weft.data.datasets.llava_json import LlavaJson
from weft.data.images import ImageTransform
from weft.data.processor import Processor
from weft.encoders.clip import ClipVision
from weft.fusion.token_concatenation import TokenConcatenation
from weft.language_models.decoder import Decoder
from weft.objectives.next_token import NextToken
from weft.projectors.linear import Linear
from weft.recipes.shrinking import TINY_VOCABULARY, desk_captions, desk_dialogues, shrunk
from weft.systems.multimodal_lm import MultimodalLM, Stream
from weft.training.stage import Optimizer, Recipe, Schedule, Stage

SIZES = ("7b", "13b")
PROJECTOR = "streams.image.projector.*"
LANGUAGE_MODEL = "language_model.*"


def llava(size: str = "7b") -> Recipe:
    """LLaVA v1 at a published size; Vicuna v1.1 and v1.3 have the shape of LLaMA."""
    if size not in SIZES:
        raise unknown_name("size of llava", size, SIZES)
    encoder = ClipVision.Config.sizes()["l-14"]
    system = MultimodalLM.Config(
        language_model=Decoder.Config.sizes()[f"llama-{size}"],
        streams={"image": Stream.Config(encoder=replace(encoder, feature_layer=-2), projector=Linear.Config())},
        fusions=(TokenConcatenation.Config(),),
    )
    image = ImageTransform(size=224)
    schedule = Schedule(decay="cosine", warmup=0.03)
    align = Stage(
        name="align",
        title="teach the projector to speak the language model's space",
        system=system,
        train=(PROJECTOR,),
        processor=Processor.Config(template="plain", transforms={"image": image}),
        data=LlavaJson.Config(path="LLaVA-CC3M-Pretrain-595K/chat.json", images="LLaVA-CC3M-Pretrain-595K/images"),
        objective=NextToken.Config(),
        batch_size=128,
        micro_batch_size=16,
        epochs=1,
        optimizer=Optimizer(learning_rate=2e-3),
        schedule=schedule,
    )
    instruct = Stage(
        name="instruct",
        title="teach projector and language model to follow instructions",
        system=system,
        train=(PROJECTOR, LANGUAGE_MODEL),
        processor=Processor.Config(template="vicuna_v1", transforms={"image": image}),
        data=LlavaJson.Config(path="llava_instruct_150k.json", images="coco/train2014"),
        objective=NextToken.Config(),
        batch_size=32,
        micro_batch_size=4,
        epochs=3,
        optimizer=Optimizer(learning_rate=2e-5),
        schedule=schedule,
    )
    return Recipe(
        name="llava",
        size=size,
        paper="2304.08485",
        about="CLIP's patches through one matrix into Vicuna",
        stages=(align, instruct),
    )


def tiny() -> Recipe:
    """LLaVA at CPU size, both of its stages."""
    system = MultimodalLM.Config(
        language_model=replace(Decoder.Config.tiny(), vocabulary=TINY_VOCABULARY, context=512),
        streams={
            "image": Stream.Config(
                encoder=replace(ClipVision.Config.tiny(), image_size=64, patch_size=16), projector=Linear.Config()
            )
        },
        fusions=(TokenConcatenation.Config(),),
    )
    data = {"align": desk_captions(), "instruct": desk_dialogues()}
    return shrunk(llava(), dict.fromkeys(data, system), data, steps=20, image_size=64)
