"""LLaVA-1.5: a finer grid, a two-layer projector and a broader mixture than LLaVA.

Source: arXiv:2310.03744. Pictures are padded to a square in stage 2 and when the model is used; boxes are fractions of that
square.
"""

from __future__ import annotations

from dataclasses import replace

from weft.core.errors import unknown_name
from weft.data.boxes import FractionBoxes
from weft.data.datasets.llava_json import LlavaJson
from weft.data.images import ImageTransform
from weft.data.processor import Processor
from weft.encoders.clip import ClipVision
from weft.fusion.token_concatenation import TokenConcatenation
from weft.language_models.decoder import Decoder
from weft.objectives.next_token import NextToken
from weft.projectors.mlp import MLP
from weft.recipes.shrinking import TINY_VOCABULARY, desk_captions, desk_dialogues, shrunk
from weft.systems.multimodal_lm import MultimodalLM, Stream
from weft.training.stage import Optimizer, Recipe, Schedule, Stage

SIZES = ("7b", "13b")
PROJECTOR = "streams.image.projector.*"
LANGUAGE_MODEL = "language_model.*"

# Appended to a question in the published mixture, to say what form the answer takes.
ANSWER_SHORTLY = "Answer the question using a single word or phrase."
ANSWER_WITH_A_LETTER = "Answer with the option's letter from the given choices directly."
CAPTION = "Provide a one-sentence caption for the provided image."
DESCRIBE_REGION = "Provide a short description for this region."
FIND_REGION = "Provide the bounding box coordinate of the region this sentence describes."


def llava_1_5(size: str = "7b") -> Recipe:
    """LLaVA-1.5 at a published size."""
    if size not in SIZES:
        raise unknown_name("size of llava-1.5", size, SIZES)
    encoder = ClipVision.Config.sizes()["l-14-336"]
    system = MultimodalLM.Config(
        language_model=Decoder.Config.sizes()[f"vicuna-{size}-v1.5"],
        streams={"image": Stream.Config(encoder=replace(encoder, feature_layer=-2), projector=MLP.Config(depth=2))},
        fusions=(TokenConcatenation.Config(),),
    )
    image = ImageTransform(size=336)
    boxes = FractionBoxes(square=True)
    schedule = Schedule(decay="cosine", warmup=0.03)
    align = Stage(
        name="align",
        title="teach the projector to speak the language model's space",
        system=system,
        train=(PROJECTOR,),
        processor=Processor.Config(template="plain", transforms={"image": image}, boxes=boxes),
        data=LlavaJson.Config(path="LLaVA-Pretrain/blip_laion_cc_sbu_558k.json", images="LLaVA-Pretrain/images"),
        objective=NextToken.Config(),
        batch_size=256,
        micro_batch_size=32,
        epochs=1,
        max_tokens=2048,
        optimizer=Optimizer(learning_rate=1e-3),
        schedule=schedule,
    )
    padded = replace(image, pad_to_square=True)
    instruct = Stage(
        name="instruct",
        title="teach projector and language model to follow instructions",
        system=system,
        train=(PROJECTOR, LANGUAGE_MODEL),
        processor=Processor.Config(template="vicuna_v1", transforms={"image": padded}, boxes=boxes),
        data=LlavaJson.Config(path="llava_v1_5_mix665k.json", images="images"),
        objective=NextToken.Config(),
        batch_size=128,
        micro_batch_size=16,
        epochs=1,
        max_tokens=2048,
        optimizer=Optimizer(learning_rate=2e-5),
        schedule=schedule,
    )
    return Recipe(
        name="llava-1.5",
        size=size,
        paper="2310.03744",
        about="CLIP's patches at 336 pixels through a two-layer projector into Vicuna v1.5",
        stages=(align, instruct),
    )


def tiny() -> Recipe:
    """LLaVA-1.5 at CPU size, both of its stages."""
    system = MultimodalLM.Config(
        language_model=replace(Decoder.Config.tiny(), vocabulary=TINY_VOCABULARY, context=512),
        streams={
            "image": Stream.Config(
                encoder=replace(ClipVision.Config.tiny(), image_size=64, patch_size=16), projector=MLP.Config(depth=2)
            )
        },
        fusions=(TokenConcatenation.Config(),),
    )
    data = {"align": desk_captions(), "instruct": desk_dialogues()}
    return shrunk(llava_1_5(), dict.fromkeys(data, system), data, steps=20, image_size=64)
