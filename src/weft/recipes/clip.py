"""CLIP: two towers from image-text pairs by softmax contrast.

Source: arXiv:2103.00020. The published pairs (WebImageText) are private; any file of image-text pairs takes their place.
The 336-pixel model trains one more epoch at the finer grid; its position embedding is learned anew there, where the published
one was interpolated from the coarse grid.
"""

from __future__ import annotations

from dataclasses import replace

from weft.core.errors import unknown_name
from weft.data.datasets.llava_json import LlavaJson
from weft.data.images import ImageTransform
from weft.data.processor import Processor
from weft.encoders.clip import ClipText, ClipVision
from weft.objectives.contrastive import SoftmaxContrastive
from weft.recipes.shrinking import TINY_VOCABULARY, desk_captions, shrunk
from weft.systems.dual_encoder import DualEncoder
from weft.training.stage import Optimizer, Recipe, Schedule, Stage

SIZES = ("b-32", "b-16", "l-14", "l-14-336")

_EMBEDDING = {"b-32": 512, "b-16": 512, "l-14": 768, "l-14-336": 768}
_LEARNING_RATE = {"b-32": 5e-4, "b-16": 5e-4, "l-14": 4e-4, "l-14-336": 4e-4}
_ALL_BUT_POSITIONS = {
    f"{name}*": name
    for name in (
        "media.class_embedding", "media.patch_embedding.", "media.input_norm.", "media.blocks.", "media.final_norm.",
        "text.", "media_projection.", "text_projection.", "logit_scale",
    )
}  # fmt: skip


def clip(size: str = "l-14-336") -> Recipe:
    """CLIP at a published size."""
    if size not in SIZES:
        raise unknown_name("size of clip", size, SIZES)
    coarse = "l-14" if size == "l-14-336" else size
    stages = [_contrastive(coarse, _LEARNING_RATE[size], epochs=32)]
    if size != coarse:
        finer = _contrastive(size, 2e-5, epochs=1)
        stages.append(
            replace(
                finer, name="high_resolution", title="one more epoch at 336 pixels",
                takes={"contrastive": _ALL_BUT_POSITIONS}, new=("media.position_embedding",),
            )
        )  # fmt: skip
    return Recipe(
        name="clip",
        size=size,
        paper="2103.00020",
        about="two towers by softmax contrast of image-text pairs",
        stages=tuple(stages),
    )


def tiny() -> Recipe:
    """CLIP at CPU size, both of its stages."""

    def system(image_size: int) -> DualEncoder.Config:
        return DualEncoder.Config(
            media=replace(ClipVision.Config.tiny(), image_size=image_size, patch_size=16),
            text=replace(ClipText.Config.tiny(), vocabulary=TINY_VOCABULARY, context=77),
            embedding_width=32,
        )

    published = clip("l-14-336")
    systems = {"contrastive": system(48), "high_resolution": system(64)}
    small = shrunk(published, systems, dict.fromkeys(systems, desk_captions()), steps=20, image_size=64)
    first, second = small.stages
    coarse = replace(first.processor, transforms={"image": ImageTransform(size=48)})
    return replace(small, stages=(replace(first, processor=coarse), second))


def _contrastive(size: str, learning_rate: float, epochs: float) -> Stage:
    media = ClipVision.Config.sizes()[size]
    text = ClipText.Config.sizes()[size]
    return Stage(
        name="contrastive",
        title="match pictures and captions",
        system=DualEncoder.Config(media=media, text=text, embedding_width=_EMBEDDING[size]),
        train=("*",),
        processor=Processor.Config(template="clip_text", transforms={"image": ImageTransform(size=media.image_size)}),
        data=LlavaJson.Config(path="image-text-pairs.json", images="images"),
        objective=SoftmaxContrastive.Config(),
        batch_size=32_768,
        epochs=epochs,
        max_tokens=text.context,
        optimizer=Optimizer(learning_rate=learning_rate, betas=(0.9, 0.98), epsilon=1e-6, weight_decay=0.2, clip_norm=None),
        schedule=Schedule(decay="cosine", warmup=2000),
    )
