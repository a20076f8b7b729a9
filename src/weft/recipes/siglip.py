"""SigLIP: two towers from image-text pairs, every pair a yes-or-no question of its own.

Source: arXiv:2303.15343; weight decay, warm-up and cosine as its successor reports them, arXiv:2502.14786. The published pairs
(WebLI) are private; any file of image-text pairs takes their place. AdamW stands for the published Adafactor.
"""

from __future__ import annotations

from dataclasses import replace

from weft.core.errors import unknown_name
from weft.data.datasets.llava_json import LlavaJson
from weft.data.images import HALF, ImageTransform
from weft.data.processor import Processor
from weft.encoders.siglip import SiglipText, SiglipVision
from weft.objectives.contrastive import SigmoidContrastive
from weft.recipes.shrinking import TINY_VOCABULARY, desk_captions, shrunk
from weft.systems.dual_encoder import DualEncoder
from weft.training.stage import Optimizer, Recipe, Schedule, Stage

SIZES = ("b-16-224", "l-16-256", "so400m-14-384")
_EXAMPLES_SEEN = 9_000_000_000
_BATCH_SIZE = 32_768


def siglip(size: str = "so400m-14-384") -> Recipe:
    """SigLIP at a published size."""
    if size not in SIZES:
        raise unknown_name("size of siglip", size, SIZES)
    media, text = SiglipVision.Config.sizes()[size], SiglipText.Config.sizes()[size]
    contrastive = Stage(
        name="contrastive",
        title="match pictures and captions",
        system=DualEncoder.Config(media=media, text=text, initial_scale=10.0, initial_bias=-10.0),
        train=("*",),
        processor=Processor.Config(
            template="siglip_text",
            transforms={"image": ImageTransform(size=media.image_size, resize="direct", mean=HALF, std=HALF)},
        ),
        data=LlavaJson.Config(path="image-text-pairs.json", images="images"),
        objective=SigmoidContrastive.Config(),
        batch_size=_BATCH_SIZE,
        steps=_EXAMPLES_SEEN // _BATCH_SIZE,
        max_tokens=text.context,
        optimizer=Optimizer(learning_rate=1e-3, betas=(0.9, 0.95), weight_decay=1e-4, clip_norm=1.0),
        schedule=Schedule(decay="cosine", warmup=20_000),
    )
    return Recipe(
        name="siglip",
        size=size,
        paper="2303.15343",
        about="two towers by sigmoid contrast of image-text pairs",
        stages=(contrastive,),
    )


def tiny() -> Recipe:
    """SigLIP at CPU size."""
    system = DualEncoder.Config(
        media=replace(SiglipVision.Config.tiny(), image_size=64, patch_size=16),
        text=replace(SiglipText.Config.tiny(), vocabulary=TINY_VOCABULARY, context=64, padding_token=0),
        initial_scale=10.0,
        initial_bias=-10.0,
    )
    return shrunk(siglip(), {"contrastive": system}, {"contrastive": desk_captions()}, steps=20, image_size=64)
