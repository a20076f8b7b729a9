"""InstructBLIP: BLIP-2 whose Q-Former reads the instruction too, on Vicuna v1.1 or Flan-T5.

Source: arXiv:2305.06500. Of its 26 data sets 13 are trained on and 13 held out. They are drawn by the roots of their sizes,
which are numbers of records here: a caption, a question or a dialogue each. By hand the paper then lowered A-OKVQA and raised
OKVQA; by how much was not published, so every weight is 1. Batch sizes and rates are told of the paper and were found neither
in it nor in released files. The tokenizer brings a second one for the Q-Former, BERT's, in a folder `qformer_tokenizer`.
"""

from __future__ import annotations

from dataclasses import replace

from weft.checkpoints.blip_2 import STREAM, system_of
from weft.core.errors import unknown_name
from weft.core.interfaces import LanguageModel
from weft.data.datasets.llava_json import LlavaJson
from weft.data.datasets.mixture import Mixture
from weft.data.images import ImageTransform
from weft.data.processor import Processor
from weft.language_models.decoder import Decoder
from weft.objectives.next_token import NextToken
from weft.projectors.qformer import QFormer
from weft.recipes import blip_2
from weft.recipes.shrinking import TINY_VOCABULARY, desk_captions, desk_dialogues, on_desk, shrunk
from weft.systems.multimodal_lm import Stream
from weft.training.stage import Optimizer, Recipe, Schedule, Stage

SIZES = ("vicuna-7b", "vicuna-13b", "flan-t5-xl", "flan-t5-xxl")
BERT_VOCABULARY = 30_522  # of bert-base-uncased; published files have a row more, for BLIP-2's token before captions
CAPTIONS = ("coco_caption", "web_capfilt", "textcaps")
DIALOGUES = (
    "vqav2", "okvqa", "a_okvqa", "ocr_vqa",
    "vqg_vqav2", "vqg_okvqa", "vqg_a_okvqa",  # the same, asking for the question of an answer
    "llava_conversation", "llava_detail", "llava_reasoning",
)  # fmt: skip
INSTRUCTIONS = Mixture.Config(
    parts={
        name: Mixture.Part(data=LlavaJson.Config(path=f"{name}/instructions.jsonl", images=f"{name}/images"))
        for name in (*CAPTIONS, *DIALOGUES)
    },
    weighting="roots",
)
_BATCH = {"vicuna-7b": 128, "vicuna-13b": 64, "flan-t5-xl": 192, "flan-t5-xxl": 64}


def instructblip(size: str = "vicuna-7b") -> Recipe:
    """InstructBLIP at a published size."""
    if size not in SIZES:
        raise unknown_name("size of instructblip", size, SIZES)
    stream = Stream.Config(encoder=blip_2.TOWER, projector=QFormer.Config(vocabulary=BERT_VOCABULARY))
    instruct = Stage(
        name="instruct",
        title="teach the Q-Former to read of a picture what the instruction asks for",
        system=system_of(language_model(size), stream),
        train=(blip_2.PROJECTOR,),
        processor=Processor.Config(template="instructblip", transforms={STREAM: ImageTransform(size=224, resize="direct")}),
        data=INSTRUCTIONS,
        objective=NextToken.Config(),
        batch_size=_BATCH[size],
        steps=60_000,
        max_tokens=416,  # 32 queries, 128 tokens of instruction, 256 of answer
        optimizer=Optimizer(learning_rate=1e-5, weight_decay=0.05, clip_norm=None),
        schedule=Schedule(decay="cosine", warmup=1000),
    )
    return Recipe(
        name="instructblip",
        size=size,
        paper="2305.06500",
        about="BLIP-2 whose queries read the instruction beside the picture",
        stages=(instruct,),
    )


def language_model(size: str) -> LanguageModel.Config:
    """The language model of a size; a padding token was added to Vicuna."""
    if size.startswith("flan"):
        return blip_2.language_model(size)
    return replace(Decoder.Config.sizes()[size.replace("vicuna", "llama")], vocabulary=32_001)


def tiny() -> Recipe:
    """InstructBLIP at CPU size."""
    model = replace(Decoder.Config.tiny(), vocabulary=TINY_VOCABULARY, context=512)
    projector = replace(QFormer.Config.tiny(), vocabulary=TINY_VOCABULARY)
    stream = Stream.Config(encoder=blip_2.tiny_tower(64), projector=projector)
    desk = dict.fromkeys(CAPTIONS, desk_captions()) | dict.fromkeys(DIALOGUES, desk_dialogues())
    data = {"instruct": on_desk(INSTRUCTIONS, **desk)}
    return shrunk(instructblip(), dict.fromkeys(data, system_of(model, stream)), data, steps=20, image_size=64)
