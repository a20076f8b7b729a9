"""Flamingo: a frozen NFNet-F6, a Perceiver over pictures and videos, and gated blocks inside a frozen language model.

Source: arXiv:2204.14198. Neither weights nor data were published, nor Chinchilla itself: a decoder of its layers, width and
heads stands in its place, with a gated feed-forward of the same arithmetic, 8 D^2 a layer (Chinchilla's is four widths wide,
without a gate). Shapes and placement are followed; the counts of the paper's table do not come out of them. In percent of the
table's: the gated blocks 96 (3B), 113 (9B; of the prose's 1.8 billion 100) and 84 (80B), the resampler 90, the whole 98, 116
and 93. The 9B's language model of 40 layers has more than the 7.1 billion that stand beside it.

Training adds the gradients of interleaved web pages (M3W), pairs (ALIGN, LTIP) and videos (VTP), weighted; here a step has
equal parts of the four on average, as the batches by set were not found, and the weights stand at their tokens. Pages are read
as OBELICS's rows: from a random place on, five pictures at most, half of them with texts that see the picture behind them.
"""

from __future__ import annotations

from dataclasses import replace

from weft.core.errors import unknown_name
from weft.data.datasets.llava_json import LlavaJson
from weft.data.datasets.mixture import Mixture
from weft.data.datasets.obelics import Obelics
from weft.data.desk.documents import DeskDocuments
from weft.data.images import ImageTransform
from weft.data.interleaving import Interleaving
from weft.data.processor import Processor
from weft.data.video import VideoTransform
from weft.encoders.nfnet import Nfnet
from weft.fusion.cross_attention import CrossAttention, GatedDense
from weft.language_models.decoder import Decoder
from weft.layers.added_tokens import AddedTokens
from weft.objectives.next_token import NextToken
from weft.projectors.perceiver import Perceiver
from weft.recipes.shrinking import TINY_VOCABULARY, desk_captions, desk_dialogues, on_desk, shrunk, with_fast_gates
from weft.systems.multimodal_lm import MultimodalLM, Stream
from weft.training.stage import Optimizer, Recipe, Schedule, Stage

SIZES = ("3b", "9b", "80b")
TRAINED = ("streams.image.projector.*", "language_model.blocks.*.before_attention.*", "added_tokens.*")
RESAMPLER = Perceiver.Config(width=1536, num_heads=16, head_width=96, activation="squared_relu", num_frames=8)
RESOLUTION = 320
PAIR = "flamingo_pair"
PAGES = Interleaving(random_start=True, max_media=5, next_share=0.5)
DATA = Mixture.Config(
    parts={
        "m3w": Mixture.Part(
            data=Obelics.Config(path="m3w/*.jsonl", images="m3w/images", interleaving=PAGES, strict=False), loss_weight=1.0
        ),
        "align": Mixture.Part(
            data=LlavaJson.Config(path="align/pairs.jsonl", images="align/images"), loss_weight=0.2, template=PAIR
        ),
        "ltip": Mixture.Part(
            data=LlavaJson.Config(path="ltip/pairs.jsonl", images="ltip/images"), loss_weight=0.2, template=PAIR
        ),
        "vtp": Mixture.Part(
            data=LlavaJson.Config(path="vtp/pairs.jsonl", images="vtp/videos"), loss_weight=0.03, template=PAIR
        ),
    }
)

# layers, width, heads of the language model, and every how many of its layers a gated block stands
SHAPES = {"3b": (24, 2048, 16, 1), "9b": (40, 4096, 32, 4), "80b": (80, 8192, 64, 7)}


def flamingo(size: str = "9b") -> Recipe:
    """Flamingo at a published size."""
    if size not in SIZES:
        raise unknown_name("size of flamingo", size, SIZES)
    num_layers, width, heads, every = SHAPES[size]
    language_model = Decoder.Config(
        width=width,
        num_layers=num_layers,
        num_heads=heads,
        num_key_value_heads=heads,
        feed_forward_width=-(-8 * width // 3 // 256) * 256,
    )
    encoder = replace(Nfnet.Config.sizes()["f6-448"], image_size=RESOLUTION)
    system = MultimodalLM.Config(
        language_model=language_model,
        streams={"image": Stream.Config(encoder=encoder, projector=RESAMPLER)},
        fusions=(CrossAttention.Config(block=GatedDense(), every=every, memory_width=RESAMPLER.width),),
        added_tokens=AddedTokens.Config(tied=True),  # a picture's tag and the end of a chunk
    )
    transform = VideoTransform(frame=ImageTransform(size=RESOLUTION), num_frames=8)
    train = Stage(
        name="train",
        title="teach the resampler and the gated blocks to show a frozen language model pictures and videos",
        system=system,
        train=TRAINED,
        processor=Processor.Config(template="flamingo", transforms={"image": transform}),
        data=DATA,
        objective=NextToken.Config(),
        batch_size=2048,
        micro_batch_size=32,
        steps=500_000,
        max_tokens=256,
        packing=True,
        optimizer=Optimizer(learning_rate=1e-4, weight_decay=0.1, weight_decay_except=("streams.*",)),
        schedule=Schedule(decay="constant", warmup=5000),
    )
    return Recipe(
        name="flamingo",
        size=size,
        paper="2204.14198",
        about="NFNet-F6 through a Perceiver over time into gated cross-attention of a frozen language model",
        stages=(train,),
    )


def tiny() -> Recipe:
    """Flamingo at CPU size, on pictures."""
    perceiver = replace(Perceiver.Config.tiny(), width=32, activation="squared_relu", num_frames=2, num_media=None)
    system = MultimodalLM.Config(
        language_model=replace(Decoder.Config.tiny(), vocabulary=TINY_VOCABULARY - 2, context=512),
        streams={"image": Stream.Config(encoder=replace(Nfnet.Config.tiny(), image_size=64), projector=perceiver)},
        fusions=(CrossAttention.Config(block=GatedDense(), every=2, memory_width=perceiver.width),),
        added_tokens=AddedTokens.Config(tied=True),
    )
    pairs = {"align": desk_dialogues(), "ltip": desk_captions(), "vtp": desk_captions()}
    data = {"train": on_desk(DATA, m3w=DeskDocuments.Config(interleaving=PAGES), **pairs)}
    made = shrunk(flamingo(), dict.fromkeys(data, system), data, steps=60, image_size=64)
    transform = VideoTransform(frame=ImageTransform(size=64), num_frames=2)
    processor = replace(made.processor, transforms={"image": transform})
    return with_fast_gates(replace(made, stages=tuple(replace(stage, processor=processor) for stage in made.stages)))
