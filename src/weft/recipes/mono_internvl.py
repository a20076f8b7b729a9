"""Mono-InternVL: no vision encoder, patches go into InternLM2 whose blocks have a second feed-forward for them.

Source: arXiv:2410.08202. The feed-forwards for visual tokens start as copies of the text's. Endogenous visual pre-training
(EViP) teaches them alone on noisy pairs, then on synthetic captions, then together with the attention on tasks; instruction
tuning trains everything. Of the 143 million samples of these tasks 53.9% are captions, 5.2% places of things and 40.9% text in
pictures. The stages differ in how many tiles of a picture they look at.

What pre-training took as rates and batches, and how it wrote captions, is not published with the code: this is ours in its
three stages. Instruction tuning has the released script's, without its drop path.
"""

from __future__ import annotations

from dataclasses import replace

from weft.core.errors import unknown_name
from weft.data.datasets.llava_json import LlavaJson
from weft.data.datasets.mixture import Mixture
from weft.data.images import IMAGENET_MEAN, IMAGENET_STD, ImageTransform
from weft.data.processor import Processor
from weft.data.tiles import DynamicTiling, PictureTiles
from weft.encoders.patch_vision import PatchVision
from weft.fusion.token_concatenation import TokenConcatenation
from weft.fusion.visual_expert import VisualExpert
from weft.language_models.decoder import Decoder
from weft.objectives.next_token import NextToken
from weft.projectors.pixel_shuffle import PixelShuffle
from weft.recipes.shrinking import TINY_VOCABULARY, desk_captions, desk_dialogues, on_desk, shrunk
from weft.systems.multimodal_lm import MultimodalLM, Stream
from weft.training.stage import Optimizer, Recipe, Schedule, Stage

SIZES = ("2b",)
TOKENS_PER_TILE = 256
VISUAL = ("streams.image.*", "language_model.blocks.*.feed_forward.routes.*")
ATTENTION = "language_model.blocks.*.attention.*"
_SHARES = {"captioning": 53.9, "detection": 5.2, "ocr": 40.9}
TASKS = Mixture.Config(
    parts={
        name: Mixture.Part(data=LlavaJson.Config(path=f"{name}/pairs.jsonl", images=f"{name}/images"), weight=share)
        for name, share in _SHARES.items()
    },
    epoch=143_000_000,
)

_VIEW = ImageTransform(size=448, resize="direct", mean=IMAGENET_MEAN, std=IMAGENET_STD)


def mono_internvl(size: str = "2b") -> Recipe:
    """Mono-InternVL at its published size; its vocabulary has nine tokens more than InternLM2's."""
    if size not in SIZES:
        raise unknown_name("size of mono-internvl", size, SIZES)
    stream = Stream.Config(encoder=PatchVision.Config(), projector=PixelShuffle.Config(ratio=2))
    system = _system(replace(Decoder.Config.sizes()["internlm2-1.8b"], vocabulary=92_553), stream)
    return Recipe(
        name="mono-internvl",
        size=size,
        paper="2410.08202",
        about="patches straight into InternLM2, which has a second feed-forward for them",
        stages=(
            _pretraining(
                system, "concept", "S1.1: patches and visual feed-forwards learn concepts from noisy pairs", 1280, VISUAL
            ),
            _pretraining(system, "semantic", "S1.2: the same from synthetic captions", 1792, VISUAL),
            replace(
                _pretraining(
                    system, "align", "S1.3: attention learns with them on captions, boxes and text", 3328, (*VISUAL, ATTENTION)
                ),
                data=TASKS,
            ),
            Stage(
                name="instruct",
                title="S2: everything learns to follow instructions",
                system=system,
                train=("*",),
                processor=_processor(6400),
                data=LlavaJson.Config(path="instructions.json", images="images"),
                objective=NextToken.Config(),
                batch_size=128,
                micro_batch_size=8,
                epochs=1,
                max_tokens=8192,
                optimizer=Optimizer(learning_rate=4e-5, weight_decay=0.01),
                schedule=Schedule(decay="cosine", warmup=0.03),
            ),
        ),
    )


def tiny() -> Recipe:
    """Mono-InternVL at CPU size, all of its stages."""
    stream = Stream.Config(encoder=PatchVision.Config(image_size=64, patch_size=8, width=64), projector=PixelShuffle.Config())
    decoder = replace(Decoder.Config.tiny(), vocabulary=TINY_VOCABULARY, context=512)
    published = mono_internvl()
    tasks = {"captioning": desk_captions(), "detection": desk_dialogues(), "ocr": desk_dialogues()}
    data = {
        "concept": desk_captions(),
        "semantic": desk_captions(),
        "align": on_desk(TASKS, **tasks),
        "instruct": desk_dialogues(),
    }
    return shrunk(published, dict.fromkeys(data, _system(decoder, stream)), data, steps=20, image_size=64)


def _system(decoder: Decoder.Config, stream: Stream.Config) -> MultimodalLM.Config:
    fusions = (TokenConcatenation.Config(), VisualExpert.Config(attention=False))
    return MultimodalLM.Config(language_model=decoder, streams={"image": stream}, fusions=fusions)


def _processor(max_media_tokens: int, template: str = "internlm2_chat") -> Processor.Config:
    """Tiles within a budget of visual tokens for a picture, its thumbnail's among them."""
    tiling = DynamicTiling(max_tiles=max_media_tokens // TOKENS_PER_TILE - 1)
    return Processor.Config(template=template, transforms={"image": PictureTiles(view=_VIEW, tiling=tiling)})


def _pretraining(system: MultimodalLM.Config, name: str, title: str, max_media_tokens: int, train: tuple[str, ...]) -> Stage:
    return Stage(
        name=name,
        title=title,
        system=system,
        train=train,
        processor=_processor(max_media_tokens, "internlm2_caption" if train == VISUAL else "internlm2_chat"),
        data=LlavaJson.Config(path=f"{name}.json", images="images"),
        objective=NextToken.Config(),
        batch_size=4096,
        micro_batch_size=16,
        epochs=1,
        max_tokens=4096,
        optimizer=Optimizer(learning_rate=1e-4 if train == VISUAL else 5e-5, weight_decay=0.01),
        schedule=Schedule(decay="cosine", warmup=0.03),
    )
