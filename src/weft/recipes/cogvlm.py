"""CogVLM: EVA-CLIP-E into Vicuna, whose blocks have second projections and a second feed-forward for what it sees.

Source: arXiv:2311.03079. The experts start as copies of Vicuna's layers, which stay as they are while the experts and the
projector learn, first from captions, then also to name places; half-way there the pictures grow from 224 to 490 pixels and
the tower's places are interpolated. A dialogue stage lets everything learn, the tower at a tenth of the rate; that Vicuna's own
layers learned there too is not certain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from weft.core.errors import unknown_name
from weft.data.boxes import BracketedBoxes
from weft.data.datasets.llava_json import LlavaJson
from weft.data.images import ImageTransform
from weft.data.processor import Processor
from weft.encoders.eva_clip import EvaClipVision
from weft.fusion.token_concatenation import TokenConcatenation
from weft.fusion.visual_expert import VisualExpert
from weft.language_models.decoder import Decoder
from weft.objectives.next_token import NextToken
from weft.projectors.glu import GLU
from weft.recipes.shrinking import TINY_VOCABULARY, desk_captions, desk_dialogues, resized, shrunk
from weft.systems.multimodal_lm import MultimodalLM, Stream
from weft.training.stage import Optimizer, Recipe, Schedule, Stage

SIZES = ("17b",)
EXPERTS = ("streams.image.projector.*", "language_model.blocks.*.routes.*")
ENCODER = "streams.image.encoder.*"
COARSE, FINE = 224, 490

_FINER: dict[str, Mapping[str, str]] = {"ground": {"*": ""}}


def cogvlm(size: str = "17b") -> Recipe:
    """CogVLM at its published size."""
    if size not in SIZES:
        raise unknown_name("size of cogvlm", size, SIZES)
    encoder = EvaClipVision.Config.sizes()["e-14-cogvlm"]
    decoder = replace(Decoder.Config.sizes()["vicuna-7b-v1.5"], context=2048)
    coarse = _system(decoder, replace(encoder, image_size=COARSE), GLU.Config())
    fine = _system(decoder, encoder, GLU.Config())
    ground = _stage("ground", "captions and the places of what is named", coarse, COARSE, 30_000, 1024, 1e-5)
    return Recipe(
        name="cogvlm",
        size=size,
        paper="2311.03079",
        about="EVA-CLIP-E into Vicuna with experts for visual tokens in every block",
        stages=(
            replace(
                _stage("caption", "experts and projector learn from captions", coarse, COARSE, 120_000, 8192, 1e-4),
                processor=_processor("cogvlm_caption", COARSE),
            ),
            ground,
            replace(
                ground,
                name="ground_490",
                title="the same at 490 pixels",
                system=fine,
                processor=_processor("cogvlm_base", FINE),
                takes=_FINER,
                interpolates=("streams.image.encoder.position_embedding",),
            ),
            replace(
                _stage("chat", "dialogues, with the tower at a tenth of the rate", fine, FINE, 6000, 1024, 1e-5),
                train=("*",),
                processor=_processor("cogvlm_chat", FINE),
                optimizer=_optimizer(1e-5, {ENCODER: 0.1}),
            ),
        ),
    )


def tiny() -> Recipe:
    """CogVLM at CPU size, all of its stages."""

    def system(image_size: int) -> MultimodalLM.Config:
        encoder = EvaClipVision.Config(
            image_size=image_size, patch_size=16, width=64, num_layers=2, num_heads=2, feed_forward_width=128,
            block="residual_post_norm", key_bias=True, embedding_width=None, feature_layer=-1,
        )  # fmt: skip
        decoder = replace(Decoder.Config.tiny(), num_key_value_heads=4, vocabulary=TINY_VOCABULARY, context=512)
        return _system(decoder, encoder, GLU.Config(feed_forward_width=128))

    published = cogvlm()
    sizes = {stage.name: 48 if stage.system == published.stages[0].system else 64 for stage in published.stages}
    data = {name: desk_captions() if name == "caption" else desk_dialogues() for name in sizes}
    small = shrunk(published, {name: system(size) for name, size in sizes.items()}, data, steps=20, image_size=64)

    def at_its_size(stage: Stage) -> Stage:
        transforms = {name: resized(t, sizes[stage.name]) for name, t in stage.processor.transforms.items()}
        return replace(stage, processor=replace(stage.processor, transforms=transforms))

    return replace(small, stages=tuple(map(at_its_size, small.stages)))


def _system(decoder: Decoder.Config, encoder: EvaClipVision.Config, projector: GLU.Config) -> MultimodalLM.Config:
    return MultimodalLM.Config(
        language_model=decoder,
        streams={"image": Stream.Config(encoder=encoder, projector=projector)},
        fusions=(TokenConcatenation.Config(shared_positions=True), VisualExpert.Config(attention=True, closing="text")),
    )


def _processor(template: str, image_size: int) -> Processor.Config:
    transform = ImageTransform(size=image_size, resize="direct")
    return Processor.Config(template=template, transforms={"image": transform}, boxes=BracketedBoxes())


def _optimizer(learning_rate: float, rates: Mapping[str, float]) -> Optimizer:
    return Optimizer(learning_rate=learning_rate, betas=(0.9, 0.95), weight_decay=0.05, rates=rates)


def _stage(
    name: str, title: str, system: MultimodalLM.Config, image_size: int, steps: int, batch_size: int, learning_rate: float
) -> Stage:
    return Stage(
        name=name,
        title=title,
        system=system,
        train=EXPERTS,
        processor=_processor("cogvlm_base", image_size),
        data=LlavaJson.Config(path=f"{name}.json", images="images"),
        objective=NextToken.Config(),
        batch_size=batch_size,
        micro_batch_size=16,
        steps=steps,
        max_tokens=2048,
        optimizer=_optimizer(learning_rate, {}),
        schedule=Schedule(decay="cosine", warmup=2000),
    )
