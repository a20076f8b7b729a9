"""EVA-CLIP: a vision tower that learned from hidden patches and a text tower of CLIP, matched by softmax contrast with LAMB.

Source: arXiv:2303.15389; the g models start from EVA, arXiv:2211.07636, the others from EVA-02, arXiv:2303.11331. The published
runs start both towers from such weights (`--from media=...`, `--from text=...`) and see a random crop of at least 0.9 of each
picture, where Weft takes the centre; their pairs, 2B of LAION and COYO, are named by their files. The 336-pixel model trains
on at the finer grid; its position embedding is learned anew there, where the published one was interpolated.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from weft.core.errors import unknown_name
from weft.data.datasets.llava_json import LlavaJson
from weft.data.images import ImageTransform
from weft.data.processor import Processor
from weft.encoders.clip import ClipText
from weft.encoders.eva_clip import EvaClipVision
from weft.objectives.contrastive import SoftmaxContrastive
from weft.recipes.shrinking import TINY_VOCABULARY, desk_captions, shrunk
from weft.systems.dual_encoder import DualEncoder
from weft.training.stage import Optimizer, Recipe, Schedule, Stage


class _Published(NamedTuple):
    """A row of the published table; the rates are those of the towers and of all else, the decays of vision and text."""

    text: dict[str, Any]  # what its text tower has other than CLIP's B
    batch_size: int
    samples: float  # how many it sees
    rates: tuple[float, float, float] = (4e-4, 4e-5, 5e-4)
    layer_decay: tuple[float, float] = (0.85, 0.75)


def _text(width: int, num_heads: int, num_layers: int = 12) -> dict[str, Any]:
    return {"width": width, "num_heads": num_heads, "num_layers": num_layers, "feed_forward_width": 4 * width}


_TABLE = {
    "g-14": _Published(_text(768, 12), 40_960, 11e9),  # its layer decay is unverified; this is the one of g-14-plus
    "g-14-plus": _Published(_text(1024, 16, 24), 114_688, 11e9),
    "b-16": _Published(_text(512, 8), 131_072, 8e9, rates=(2e-4, 2e-5, 5e-4), layer_decay=(0.75, 0.75)),
    "l-14": _Published(_text(768, 12), 131_072, 4e9),
    "l-14-336": _Published(_text(768, 12), 61_440, 2e9, layer_decay=(0.75, 0.65)),  # after 4B at 224 pixels; unverified
    "e-14": _Published(_text(1024, 16, 24), 115_200, 4e9, layer_decay=(0.9, 0.75)),
    "e-14-plus": _Published(_text(1280, 20, 32), 144_000, 9e9, layer_decay=(0.9, 0.75)),
}
SIZES = tuple(_TABLE)
_ALL_BUT_POSITIONS = {
    f"{name}*": name
    for name in (
        "media.class_embedding", "media.patch_embedding.", "media.blocks.", "media.final_norm.", "media.head.",
        "text.", "text_projection.", "logit_scale",
    )
}  # fmt: skip


def eva_clip(size: str = "l-14-336") -> Recipe:
    """EVA-CLIP at a published size."""
    if size not in SIZES:
        raise unknown_name("size of eva-clip", size, SIZES)
    stages = [_contrastive("l-14" if size == "l-14-336" else size)]
    if size == "l-14-336":
        finer = _contrastive(size)
        stages.append(
            replace(
                finer, name="high_resolution", title="go on at 336 pixels",
                takes={"contrastive": _ALL_BUT_POSITIONS}, new=("media.position_embedding",),
            )
        )  # fmt: skip
    return Recipe(
        name="eva-clip",
        size=size,
        paper="2303.15389",
        about="CLIP from towers that know pictures and texts already, trained with LAMB",
        stages=tuple(stages),
    )


def tiny() -> Recipe:
    """EVA-CLIP at CPU size, both stages of the 336-pixel model."""

    def system(image_size: int) -> DualEncoder.Config:
        media = replace(EvaClipVision.Config.tiny(), image_size=image_size, patch_size=16, patch_dropout=0.0)
        text = replace(ClipText.Config.tiny(), vocabulary=TINY_VOCABULARY, context=77, activation="gelu")
        return DualEncoder.Config(media=media, text=text, embedding_width=media.embedding_width, projected=("text",))

    systems = {"contrastive": system(48), "high_resolution": system(64)}
    small = shrunk(eva_clip("l-14-336"), systems, dict.fromkeys(systems, desk_captions()), steps=20, image_size=64)
    # towers that know nothing yet take longer steps, and LAMB's are shares of the weights
    first, second = (replace(stage, optimizer=replace(stage.optimizer, learning_rate=0.05)) for stage in small.stages)
    coarse = replace(first.processor, transforms={"image": ImageTransform(size=48)})
    return replace(small, stages=(replace(first, processor=coarse), second))


def _contrastive(size: str) -> Stage:
    published = _TABLE[size]
    media = EvaClipVision.Config.sizes()[size]
    text = ClipText.Config(activation="gelu", **published.text)
    vision_rate, text_rate, rate = published.rates
    return Stage(
        name="contrastive",
        title="match pictures and captions",
        system=DualEncoder.Config(media=media, text=text, embedding_width=media.embedding_width, projected=("text",)),
        train=("*",),
        processor=Processor.Config(template="clip_text", transforms={"image": ImageTransform(size=media.image_size)}),
        data=LlavaJson.Config(path="image-text-pairs.json", images="images"),
        objective=SoftmaxContrastive.Config(),
        batch_size=published.batch_size,
        steps=round(published.samples / published.batch_size),
        max_tokens=text.context,
        optimizer=Optimizer(
            name="lamb",
            learning_rate=rate,
            rates={"media.*": vision_rate / rate, "text.*": text_rate / rate, "text_projection.*": text_rate / rate},
            layer_decay=dict(zip(("media", "text"), published.layer_decay, strict=True)),
            betas=(0.9, 0.98),
            epsilon=1e-6,
            weight_decay=0.05,
            weight_decay_except=("*.position_embedding*",),
            clip_norm=5.0,
        ),
        schedule=Schedule(decay="cosine", warmup=2000),
    )
