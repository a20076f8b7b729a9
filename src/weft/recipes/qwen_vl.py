"""Qwen-VL: OpenCLIP's ViT-bigG through 256 queries that know their places, into Qwen-7B, which reads and writes boxes.

Source: arXiv:2308.12966. Stage 1 teaches tower and adapter captions at 224 pixels; stage 2 everything, seven tasks at 448
pixels, where the tower's positions are interpolated; stage 3 dialogues, with the tower frozen. Its "adapter" is the attention
of the resampler: what follows it is the tower's end in the published code, and stays frozen with the tower in stage 3.

The seven tasks are weighed by their samples in millions, 77 together; this split is unverified. A row of stage 2 is packed with
samples of one task in the paper, here with samples of any, none of which sees another.

A phrase in the data is marked `<ref>phrase</ref>`, its boxes follow.
"""

from __future__ import annotations

from dataclasses import replace

from weft.data.boxes import ThousandthBoxes
from weft.data.datasets.llava_json import LlavaJson
from weft.data.datasets.mixture import Mixture
from weft.data.images import ImageTransform
from weft.data.processor import Processor
from weft.encoders.qwen_vl_vision import QwenVLVision
from weft.fusion.token_concatenation import TokenConcatenation
from weft.language_models.decoder import Decoder
from weft.layers.rotary import QwenScaling
from weft.objectives.next_token import NextToken
from weft.projectors.qwen_resampler import QwenResampler
from weft.recipes.shrinking import TINY_VOCABULARY, desk_captions, desk_dialogues, on_desk, resized, shrunk
from weft.systems.multimodal_lm import MultimodalLM, Stream
from weft.training.stage import Optimizer, Recipe, Schedule, Stage

TOWER_AND_ADAPTER = ("streams.image.*",)
ADAPTER_AND_LANGUAGE_MODEL = ("streams.image.projector.resampler.*", "language_model.*")
COARSE, FINE = 224, 448
CONTEXT = 2048
_MILLIONS = {
    "captioning": 19.7, "vqa": 3.6, "grounding": 3.5, "ref_grounding": 8.7, "grounded_captioning": 8.7, "ocr": 24.8,
    "text": 7.8,
}  # fmt: skip
TASKS = Mixture.Config(
    parts={
        name: Mixture.Part(
            data=LlavaJson.Config(path=f"qwen_vl/{name}.jsonl", images="" if name == "text" else "qwen_vl/images"),
            weight=millions,
        )
        for name, millions in _MILLIONS.items()
    }
)

# What the published evaluation puts behind a picture.
CAPTION = "Describe the image in English:"
QUESTION = "{} Answer:"
FIND = "<ref>{}</ref>"


def qwen_vl() -> Recipe:
    """Qwen-VL, and Qwen-VL-Chat after its last stage."""
    scaling = QwenScaling(original_context=CONTEXT)
    decoder = replace(Decoder.Config.sizes()["qwen-7b"], context=CONTEXT, rope_scaling=scaling, log_scaling_context=CONTEXT)
    encoders = QwenVLVision.Config.sizes()
    coarse, fine = (_system(decoder, encoders[f"bigg-14-{size}"], QwenResampler.Config()) for size in (COARSE, FINE))
    optimizer = Optimizer(learning_rate=2e-4, betas=(0.9, 0.98), epsilon=1e-6, weight_decay=0.05)
    tower_decays = {"streams.image.encoder": 0.95}
    pretrain = Stage(
        name="pretrain",
        title="teach tower and adapter captions",
        system=coarse,
        train=TOWER_AND_ADAPTER,
        processor=_processor("qwen_vl_base", COARSE),
        data=LlavaJson.Config(path="qwen_vl/pairs.jsonl", images="qwen_vl/images"),
        objective=NextToken.Config(),
        batch_size=30_720,
        micro_batch_size=32,
        steps=50_000,
        max_tokens=512,
        optimizer=replace(optimizer, layer_decay=tower_decays),
        schedule=Schedule(decay="cosine", warmup=500, final=0.005),
    )
    multitask = replace(
        pretrain,
        name="multitask",
        title="teach everything seven tasks with finer pictures",
        system=fine,
        train=("*",),
        takes={"pretrain": {"*": ""}},
        processor=_processor("qwen_vl_base", FINE),
        data=TASKS,
        batch_size=4096,
        micro_batch_size=4,
        steps=19_000,
        max_tokens=CONTEXT,
        packing=True,
        optimizer=replace(optimizer, learning_rate=5e-5, layer_decay=tower_decays),
        schedule=Schedule(decay="cosine", warmup=400, final=0.2),
    )
    chat = replace(
        multitask,
        name="chat",
        title="teach adapter and language model to talk",
        train=ADAPTER_AND_LANGUAGE_MODEL,
        takes={},
        processor=_processor("qwen_vl", FINE),
        data=LlavaJson.Config(path="qwen_vl/dialogues.jsonl", images="qwen_vl/images"),
        batch_size=128,
        steps=8000,
        packing=False,
        optimizer=replace(optimizer, learning_rate=1e-5),
        schedule=Schedule(decay="cosine", warmup=3000, final=0.1),
    )
    return Recipe(
        name="qwen-vl",
        paper="2308.12966",
        about="OpenCLIP's ViT-bigG at 448 pixels through a resampler of 256 queries into Qwen-7B, with boxes in the text",
        stages=(pretrain, multitask, chat),
    )


def tiny() -> Recipe:
    """Qwen-VL at CPU size, all of its stages."""
    coarse, fine = 48, 64

    def system(image_size: int) -> MultimodalLM.Config:
        decoder = replace(
            Decoder.Config.tiny(), num_key_value_heads=4, vocabulary=TINY_VOCABULARY, context=512, attention_bias=True,
            rope_scaling=QwenScaling(original_context=512), log_scaling_context=512,
        )  # fmt: skip
        encoder = replace(QwenVLVision.Config.tiny(), image_size=image_size, position_image_size=coarse, patch_size=16)
        return _system(decoder, encoder, QwenResampler.Config(grid=4, head_width=16))

    published = qwen_vl()
    sizes = {"pretrain": coarse, "multitask": fine, "chat": fine}
    seen, written = desk_dialogues(), replace(desk_dialogues(), kind="text")
    tasks = dict.fromkeys(_MILLIONS, seen) | {"captioning": desk_captions(), "text": written}
    data = {"pretrain": desk_captions(), "multitask": on_desk(TASKS, **tasks), "chat": seen}
    small = shrunk(published, {name: system(size) for name, size in sizes.items()}, data, steps=20, image_size=fine)

    def at_its_size(stage: Stage) -> Stage:
        transforms = {name: resized(t, sizes[stage.name]) for name, t in stage.processor.transforms.items()}
        return replace(stage, processor=replace(stage.processor, transforms=transforms))

    return replace(small, stages=tuple(map(at_its_size, small.stages)))


def _system(decoder: Decoder.Config, encoder: QwenVLVision.Config, projector: QwenResampler.Config) -> MultimodalLM.Config:
    return MultimodalLM.Config(
        language_model=decoder,
        streams={"image": Stream.Config(encoder=encoder, projector=projector)},
        fusions=(TokenConcatenation.Config(),),
    )


def _processor(template: str, image_size: int) -> Processor.Config:
    return Processor.Config(
        template=template,
        transforms={"image": ImageTransform(size=image_size, resize="direct")},
        boxes=ThousandthBoxes(),
    )
