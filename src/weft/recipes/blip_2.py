"""BLIP-2: a Q-Former between a frozen image tower and a frozen language model, in two stages and one of captions.

Source: arXiv:2301.12597; figures of the captioning stage are the published code's. The first stage starts from a tower and a
BERT, the second puts its Q-Former, without its weights for text, before a language model: `--from streams.image.encoder=..
--from streams.image.projector=bert-base-uncased --from language_model=..`. BERT's tokenizer reads in the first stage, the
language model's from then on. Published pictures are cut at random and mirrored in training; here they are resized.
"""

from __future__ import annotations

from dataclasses import replace

from weft.checkpoints.blip_2 import STREAM, system_of
from weft.core.errors import unknown_name
from weft.core.interfaces import EncoderDecoder, LanguageModel
from weft.data.datasets.llava_json import LlavaJson
from weft.data.images import ImageTransform
from weft.data.processor import Processor
from weft.encoders.eva_clip import EvaClipVision
from weft.language_models.opt import Opt
from weft.language_models.t5 import T5
from weft.objectives.next_token import NextToken
from weft.projectors.qformer import QFormer
from weft.recipes import blip_2_pretraining
from weft.recipes.shrinking import TINY_VOCABULARY, desk_captions, shrunk
from weft.systems.multimodal_lm import MultimodalSystem, Stream
from weft.training.stage import Optimizer, Recipe, Schedule, Stage

SIZES = ("opt-2.7b", "opt-6.7b", "flan-t5-xl", "flan-t5-xxl")
TOWER = EvaClipVision.Config.sizes()["g-14-blip-2"]
PROJECTOR = f"streams.{STREAM}.projector.*"
_ENCODER = f"streams.{STREAM}.encoder."


def blip_2(size: str = "opt-2.7b") -> Recipe:
    """BLIP-2 at a published size."""
    if size not in SIZES:
        raise unknown_name("size of blip-2", size, SIZES)
    model = language_model(size)
    reads = isinstance(model, EncoderDecoder.Config)
    represent = blip_2_pretraining.represent("vit-g")
    stream = Stream.Config(encoder=TOWER, projector=QFormer.Config())
    generate = Stage(
        name="generate",
        title="teach the Q-Former to say to the language model what it reads of a picture",
        system=system_of(model, stream),
        train=(PROJECTOR,),
        takes={represent.name: {"streams.*": "streams."}},
        new=(f"streams.{STREAM}.projector.output.*", "language_model.*"),
        processor=Processor.Config(
            template="blip_2_t5_prefix" if reads else "blip_2_opt_caption",
            transforms={STREAM: ImageTransform(size=224, resize="direct")},
        ),
        data=LlavaJson.Config(path="image-text-pairs.json", images="images"),
        objective=NextToken.Config(),
        batch_size=1520 if reads else 1920,
        steps=80_000,
        max_tokens=64,  # 32 queries and 32 words
        optimizer=Optimizer(learning_rate=1e-4, betas=(0.9, 0.98), weight_decay=0.05, clip_norm=None),
        schedule=Schedule(decay="cosine", warmup=2000, final=0.5),
    )
    larger = replace(stream, encoder=replace(TOWER, image_size=364))
    caption = replace(
        generate,
        name="caption",
        title="write captions of larger pictures, the image tower learns too",
        system=system_of(model, larger),
        train=(f"{_ENCODER}*", PROJECTOR),
        takes={generate.name: {"*": ""}},
        new=(),
        interpolates=(f"{_ENCODER}position_embedding",),
        processor=Processor.Config(
            template="blip_2_t5_photo" if reads else "blip_2_opt_photo",
            transforms={STREAM: ImageTransform(size=364, resize="direct")},
        ),
        data=LlavaJson.Config(path="coco_karpathy_train.json", images="coco"),
        batch_size=256,
        steps=None,
        epochs=5,
        optimizer=replace(generate.optimizer, learning_rate=1e-5),
        schedule=Schedule(decay="cosine", warmup=1000),
    )
    return Recipe(
        name="blip-2",
        size=size,
        paper="2301.12597",
        about="EVA-CLIP-g through 32 queries into a frozen OPT or Flan-T5",
        stages=(represent, generate, caption),
    )


def language_model(size: str) -> LanguageModel.Config:
    """The language model of a size; its files pad OPT-2.7B's table, and its T5 has the exact GELU."""
    if size.startswith("opt"):
        model = Opt.Config.sizes()[size]
        return replace(model, vocabulary=50_304) if size == "opt-2.7b" else model
    return replace(T5.Config.sizes()[size], activation="gelu")


def tiny() -> Recipe:
    """BLIP-2 at CPU size, all of its stages."""
    model = replace(Opt.Config.tiny(), vocabulary=TINY_VOCABULARY, context=512)

    def seeing(image_size: int) -> MultimodalSystem.Config:
        return system_of(model, Stream.Config(encoder=tiny_tower(image_size), projector=QFormer.Config.tiny()))

    systems = {
        "represent": blip_2_pretraining.tiny_system(tiny_tower(48)),
        "generate": seeing(48),
        "caption": seeing(64),
    }
    small = shrunk(blip_2(), systems, dict.fromkeys(systems, desk_captions()), steps=20, image_size=64)
    represent, generate, caption = small.stages
    coarse = {STREAM: ImageTransform(size=48, resize="direct")}
    represent, generate = (
        replace(stage, processor=replace(stage.processor, transforms=coarse)) for stage in (represent, generate)
    )
    represent = replace(blip_2_pretraining.livelier(represent), steps=40)
    return replace(small, stages=(represent, generate, caption))


def tiny_tower(image_size: int) -> EvaClipVision.Config:
    """The published tower, small."""
    return replace(TOWER, image_size=image_size, patch_size=16, width=64, num_layers=2, num_heads=2, feed_forward_width=96)
