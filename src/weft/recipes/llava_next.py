"""LLaVA-NeXT, also called LLaVA-1.6: LLaVA-1.5 that sees a picture whole and in tiles, and trains its image tower too.

Source: the LLaVA-NeXT release of January 2024, after LLaVA-1.5, arXiv:2310.03744. The projector is LLaVA-1.5's, trained on
captions of whole pictures; tiles, the padding cut off and a newline behind each row come with the instructions. How these
models were tuned was not released: rates, precision and length of stage 2 are those of the released scripts for the same
mixture with later language models, the batch is LLaVA-1.5's. Of the released sizes the 34B, on Nous-Hermes-2-Yi, is not here:
its shape and prompt were not verified.
"""

from __future__ import annotations

from dataclasses import replace

from weft.core.errors import unknown_name
from weft.core.interfaces import InputProjector
from weft.data.boxes import FractionBoxes
from weft.data.datasets.llava_json import LlavaJson
from weft.data.images import ImageTransform
from weft.data.processor import Processor
from weft.data.tiles import AnyResolution, PictureTiles
from weft.encoders.clip import ClipVision
from weft.fusion.token_concatenation import TokenConcatenation
from weft.language_models.decoder import Decoder
from weft.layers.transformer import num_blocks_to_run
from weft.objectives.next_token import NextToken
from weft.projectors.mlp import MLP
from weft.projectors.tiles import Tiles
from weft.recipes import llava_1_5
from weft.recipes.shrinking import TINY_VOCABULARY, desk_captions, desk_dialogues, shrunk
from weft.systems.multimodal_lm import MultimodalLM, Stream
from weft.training.stage import Optimizer, Recipe, Stage

SIZES = ("7b", "13b", "mistral-7b")
ENCODER = "streams.image.encoder."
PROJECTOR = "streams.image.projector."
LANGUAGE_MODEL = "language_model."


def llava_next(size: str = "7b") -> Recipe:
    """LLaVA-NeXT at a published size: on Vicuna v1.5, or on Mistral-7B-Instruct v0.2."""
    if size not in SIZES:
        raise unknown_name("size of llava-next", size, SIZES)
    on_mistral = size == "mistral-7b"
    align = llava_1_5.llava_1_5("7b" if on_mistral else size).stage("align")
    system = align.system
    assert isinstance(system, MultimodalLM.Config)
    if on_mistral:
        system = replace(system, language_model=Decoder.Config.sizes()["mistral-7b-v0.2"])
        align = replace(align, system=system)
    stream = system.streams["image"]
    encoder = stream.encoder
    assert isinstance(encoder, ClipVision.Config)
    tiled = replace(stream, projector=Tiles.Config(inner=stream.projector))
    instruct = Stage(
        name="instruct",
        title="teach image tower, projector and language model to follow instructions about tiled pictures",
        system=replace(system, streams={"image": tiled}),
        train=_all_that_is_read(encoder),
        takes={
            "align": {
                f"{ENCODER}*": ENCODER,
                f"{PROJECTOR}*": f"{PROJECTOR}inner.",
                f"{LANGUAGE_MODEL}*": LANGUAGE_MODEL,
            }
        },
        new=(f"{PROJECTOR}newline",),
        processor=Processor.Config(
            template="mistral" if on_mistral else "vicuna_v1",
            transforms={
                "image": PictureTiles(view=ImageTransform(size=encoder.image_size, resize="direct"), tiling=AnyResolution())
            },
            boxes=FractionBoxes(square=True),
        ),
        data=LlavaJson.Config(path="LLaVA-NeXT-Data/llava1_6mix.json", images="images"),
        objective=NextToken.Config(),
        batch_size=128,  # unverified, as are the rates: see above
        micro_batch_size=4,
        epochs=1,
        max_tokens=4096,
        optimizer=Optimizer(learning_rate=1e-5, rates={f"{ENCODER}*": 0.2}),
        schedule=align.schedule,
    )
    return Recipe(
        name="llava-next",
        size=size,
        paper="2310.03744",
        about="LLaVA-1.5 that sees pictures whole and in tiles, as LLaVA-1.6 does",
        stages=(align, instruct),
    )


def _all_that_is_read(encoder: ClipVision.Config) -> tuple[str, ...]:
    """Every parameter but those of the image tower behind the features that are taken from it."""
    assert isinstance(encoder.feature_layer, int)
    first = num_blocks_to_run(encoder.feature_layer, encoder.num_layers)
    return ("*", *(f"!{ENCODER}blocks.{i}.*" for i in range(first, encoder.num_layers)), f"!{ENCODER}final_norm.*")


def tiny() -> Recipe:
    """LLaVA-NeXT at CPU size, both of its stages; a drawn desk fills two by two tiles."""
    encoder = replace(ClipVision.Config.tiny(), image_size=32, patch_size=8)

    def system(projector: InputProjector.Config) -> MultimodalLM.Config:
        return MultimodalLM.Config(
            language_model=replace(Decoder.Config.tiny(), vocabulary=TINY_VOCABULARY, context=512),
            streams={"image": Stream.Config(encoder=encoder, projector=projector)},
            fusions=(TokenConcatenation.Config(),),
        )

    plain = MLP.Config(depth=2)
    systems = {"align": system(plain), "instruct": system(Tiles.Config(inner=plain))}
    data = {"align": desk_captions(), "instruct": desk_dialogues()}
    small = shrunk(llava_next(), systems, data, steps=20, image_size=encoder.image_size)
    align, instruct = small.stages
    return replace(small, stages=(align, replace(instruct, train=_all_that_is_read(encoder))))
