"""MiniGPT-4: one trained matrix between BLIP-2's frozen eyes and a frozen Vicuna or LLaMA-2.

Source: arXiv:2304.10592 and its published configurations. Stage 1 draws 115 pairs of LAION for 14 of Conceptual Captions and
SBU. Before Vicuna stands the Q-Former of BLIP-2 on Flan-T5-XXL
(`--from streams.image.projector.transformer=blip2_pretrained_flant5xxl.pth`); before LLaMA-2-chat none: the matrix reads four
neighbouring patches at a time.
"""

from __future__ import annotations

from dataclasses import replace

from weft.checkpoints.blip_2 import STREAM, system_of
from weft.core.errors import unknown_name
from weft.data.datasets.llava_json import LlavaJson
from weft.data.datasets.mixture import Mixture
from weft.data.images import ImageTransform
from weft.data.processor import Processor
from weft.language_models.decoder import Decoder
from weft.objectives.next_token import NextToken
from weft.projectors.adjacent_features import AdjacentFeatures
from weft.projectors.qformer import QFormer
from weft.recipes import blip_2
from weft.recipes.shrinking import TINY_VOCABULARY, desk_captions, desk_dialogues, on_desk, shrunk
from weft.systems.multimodal_lm import Stream
from weft.training.stage import Optimizer, Recipe, Schedule, Stage

SIZES = ("13b", "7b", "llama-2-7b")
PAIRS = Mixture.Config(
    parts={
        "laion": Mixture.Part(data=LlavaJson.Config(path="laion/pairs.jsonl", images="laion/images"), weight=115),
        "cc_sbu": Mixture.Part(data=LlavaJson.Config(path="cc_sbu/pairs.jsonl", images="cc_sbu/images"), weight=14),
    }
)


def minigpt_4(size: str = "13b") -> Recipe:
    """MiniGPT-4 at a published size."""
    if size not in SIZES:
        raise unknown_name("size of minigpt-4", size, SIZES)
    queries = not size.startswith("llama")
    if queries:
        stream = Stream.Config(encoder=blip_2.TOWER, projector=QFormer.Config())
        model, tokens = Decoder.Config.sizes()[f"llama-{size}"], 32
    else:
        stream = Stream.Config(encoder=replace(blip_2.TOWER, keep_class_token=False), projector=AdjacentFeatures.Config())
        model, tokens = Decoder.Config.sizes()["vicuna-7b-v1.5"], 64  # whose form is LLaMA-2's
    align = Stage(
        name="align",
        title="teach the matrix on captions from the web",
        system=system_of(model, stream),
        train=(f"streams.{STREAM}.projector.{'output' if queries else 'linear'}.*",),
        processor=Processor.Config(template="plain", transforms={STREAM: ImageTransform(size=224, resize="direct")}),
        data=PAIRS,
        objective=NextToken.Config(),
        batch_size=256,
        steps=20_000,
        max_tokens=tokens + 160,
        optimizer=Optimizer(learning_rate=1e-4, weight_decay=0.05, clip_norm=None),
        schedule=Schedule(decay="cosine", warmup=5000, final=0.8),
    )
    tune = replace(
        align,
        name="tune",
        title="teach the matrix on long descriptions in a dialogue",
        processor=replace(align.processor, template="minigpt_4" if queries else "minigpt_4_llama_2"),
        data=LlavaJson.Config(path="cc_sbu_align/dialogues.json", images="cc_sbu_align/image"),
        batch_size=12,
        steps=1000,
        max_tokens=tokens + 208,  # 160 of answer, and what stands around the picture
        optimizer=replace(align.optimizer, learning_rate=3e-5),
        schedule=Schedule(decay="cosine", warmup=200, final=1 / 3),
    )
    return Recipe(
        name="minigpt-4",
        size=size,
        paper="2304.10592",
        about="BLIP-2's tower and Q-Former, frozen, through one trained matrix into Vicuna or LLaMA-2",
        stages=(align, tune),
    )


def tiny() -> Recipe:
    """MiniGPT-4 at CPU size, both of its stages."""
    model = replace(Decoder.Config.tiny(), vocabulary=TINY_VOCABULARY, context=512)
    system = system_of(model, Stream.Config(encoder=blip_2.tiny_tower(64), projector=QFormer.Config.tiny()))
    data = {"align": on_desk(PAIRS, **dict.fromkeys(PAIRS.parts, desk_captions())), "tune": desk_dialogues()}
    return shrunk(minigpt_4(), dict.fromkeys(data, system), data, steps=40, image_size=64)
