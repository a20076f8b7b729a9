"""Llama 3.2 Vision: a tower over tiles whose features stand beside Llama 3.1, read by gated blocks among its frozen layers.

Source: The Llama 3 Herd of Models, arXiv:2407.21783. The adapter is trained on pairs with small tiles, then on better ones with
the tiles of the released base models, and tuned on dialogues with those of the instructed ones; the tower learns all along and
the language model never does, so texts without pictures are answered as before. Where tiles grow, the tower's positions are
interpolated and what it learned for each tile of a grid begins anew behind a shut gate; the paper does not say how this was
done. Of post-training here is the supervised part, without rejection sampling and preferences; its rates were not published.
"""

from __future__ import annotations

from dataclasses import replace

from weft.checkpoints.mllama import ADDED, fusion
from weft.core.errors import unknown_name
from weft.data.datasets.llava_json import LlavaJson
from weft.data.images import HALF, ImageTransform
from weft.data.processor import Processor
from weft.data.tiles import FittedCanvas, PictureTiles
from weft.encoders.mllama import Mllama
from weft.language_models.decoder import Decoder
from weft.objectives.next_token import NextToken
from weft.projectors.linear import Linear
from weft.recipes.shrinking import TINY_VOCABULARY, desk_captions, desk_dialogues, shrunk, with_fast_gates
from weft.systems.multimodal_lm import MultimodalLM, Stream
from weft.training.stage import Optimizer, Recipe, Schedule, Stage

SIZES = ("11b", "90b")
EVERY, FIRST = 4, 3
TILE_SIZES = {"pretrain": 336, "anneal": 448, "instruct": 560}
TRAINED = ("streams.image.*", "language_model.blocks.*.before_attention.*", "added_tokens.*")
_ENCODER = "streams.image.encoder."
_OF_ANY_SIZE = (
    "patch_embedding.", "class_embedding", "position_embedding", "tiles_before_local.", "tiles_before_global.",
    "norm_before_local.", "norm_before_global.", "local_blocks.", "global_blocks.",
)  # fmt: skip


def llama_3_2_vision(size: str = "11b") -> Recipe:
    """Llama 3.2 Vision at a published size: on Llama 3.1 8B or 70B."""
    if size not in SIZES:
        raise unknown_name("size of llama-3.2-vision", size, SIZES)
    decoder = Decoder.Config.sizes()["llama-3.1-8b"]
    if size == "90b":
        decoder = replace(decoder, width=8192, num_layers=80, num_heads=64, feed_forward_width=28_672)
    pretrain = Stage(
        name="pretrain",
        title="teach the tower, its linear map and the gated blocks on pairs of pictures and texts",
        system=_system(decoder, Mllama.Config(image_size=TILE_SIZES["pretrain"])),
        train=TRAINED,
        processor=_processor("llama_3_2_caption", TILE_SIZES["pretrain"]),
        data=LlavaJson.Config(path="image-text-pairs.json", images="images"),
        objective=NextToken.Config(),
        batch_size=16_384,
        micro_batch_size=8,
        epochs=1,
        max_tokens=512,
        optimizer=Optimizer(learning_rate=1e-3, weight_decay=0.01),
        schedule=Schedule(decay="cosine", warmup=2000),
    )
    anneal = _at_larger_tiles(
        replace(
            pretrain,
            name="anneal",
            title="the same on better pairs, with larger tiles",
            data=LlavaJson.Config(path="annealing.json", images="images"),
            optimizer=replace(pretrain.optimizer, learning_rate=1e-4),
        ),
        pretrain,
        _system(decoder, Mllama.Config(image_size=TILE_SIZES["anneal"])),
    )
    instruct = _at_larger_tiles(
        replace(
            anneal,
            name="instruct",
            title="teach the same parts to follow instructions, inside the instructed language model",
            processor=replace(anneal.processor, template="llama_3_2"),
            data=LlavaJson.Config(path="dialogues.json", images="images"),
            batch_size=256,
            max_tokens=4096,
            optimizer=replace(anneal.optimizer, learning_rate=1e-5),
        ),
        anneal,
        _system(decoder, Mllama.Config(image_size=TILE_SIZES["instruct"])),
    )
    return Recipe(
        name="llama-3.2-vision",
        size=size,
        paper="2407.21783",
        about="a tower over tiles beside a frozen Llama 3.1, read by gated cross-attention",
        stages=(pretrain, anneal, instruct),
    )


def _system(decoder: Decoder.Config, encoder: Mllama.Config, every: int = EVERY, first: int = FIRST) -> MultimodalLM.Config:
    return MultimodalLM.Config(
        language_model=decoder,
        streams={"image": Stream.Config(encoder=encoder, projector=Linear.Config())},
        fusions=(fusion(decoder, every, first),),
        added_tokens=ADDED,
    )


def _processor(template: str, tile_size: int) -> Processor.Config:
    view = ImageTransform(size=tile_size, resize="direct", filter="bilinear", mean=HALF, std=HALF)
    return Processor.Config(template=template, transforms={"image": PictureTiles(view=view, tiling=FittedCanvas())})


def _at_larger_tiles(stage: Stage, before: Stage, system: MultimodalLM.Config) -> Stage:
    """The stage with another system that takes everything but what belongs to the size of a tile."""
    return replace(
        stage,
        system=system,
        processor=_processor(stage.processor.template, system.streams["image"].encoder.unit_shape[-1]),
        takes={
            before.name: {
                **{f"{_ENCODER}{part}*": f"{_ENCODER}{part}" for part in _OF_ANY_SIZE},
                "streams.image.projector.*": "streams.image.projector.",
                "language_model.*": "language_model.",
                "added_tokens.*": "added_tokens.",
            }
        },
        new=(f"{_ENCODER}tile_positions.*",),
        interpolates=(f"{_ENCODER}position_embedding",),
    )


def tiny() -> Recipe:
    """Llama 3.2 Vision at CPU size, all of its stages; a drawn desk fills two by two tiles."""
    decoder = replace(Decoder.Config.tiny(), vocabulary=TINY_VOCABULARY - ADDED.num_inputs, context=512)
    sizes = {"pretrain": 32, "anneal": 48, "instruct": 64}
    systems = {
        name: _system(decoder, replace(Mllama.Config.tiny(), image_size=size, patch_size=16, max_tiles=4), every=2, first=0)
        for name, size in sizes.items()
    }
    data = {"pretrain": desk_captions(), "anneal": desk_captions(), "instruct": desk_dialogues()}
    small = with_fast_gates(shrunk(llama_3_2_vision(), systems, data, steps=20, image_size=64))
    stages = (replace(stage, processor=_processor(stage.processor.template, sizes[stage.name])) for stage in small.stages)
    return replace(small, stages=tuple(stages))
