"""VILA: LLaVA-1.5's parts with a stage between its two, in which the language model learns from documents full of pictures.

Source: arXiv:2312.07533 and its released scripts. Frozen in that stage, the language model answers as well but no longer learns
from examples in its context. It reads pairs of COYO and documents of MMC4, each once, and learns all of their text; a document
has six pictures at most. The last stage reads instructions with pictures and, so that text is not forgotten, without.
Instructions without a system message are records whose system turn is empty.

The scripts use LLaVA-1.5's projector; the paper argues for one matrix: the sizes in "-linear". VILA-1.5 sees through SigLIP,
stretches pictures to its square, joins two by two features, and trains the tower with the last stage.
"""

from __future__ import annotations

from dataclasses import replace

from weft.core.errors import unknown_name
from weft.core.interfaces import InputProjector, ModalityEncoder
from weft.data.boxes import FractionBoxes
from weft.data.datasets.joined import Joined
from weft.data.datasets.llava_json import LlavaJson
from weft.data.datasets.mixture import Mixture
from weft.data.datasets.mmc4 import Mmc4
from weft.data.desk.dataset import DeskConversations
from weft.data.images import HALF, ImageTransform
from weft.encoders.clip import ClipVision
from weft.encoders.siglip import SiglipVision
from weft.fusion.token_concatenation import TokenConcatenation
from weft.language_models.decoder import Decoder
from weft.layers.transformer import num_blocks_to_run
from weft.projectors.linear import Linear
from weft.projectors.mlp import MLP
from weft.projectors.mlp_downsample import MLPDownsample
from weft.recipes import llava_1_5
from weft.recipes.shrinking import TINY_VOCABULARY, desk_captions, desk_dialogues, on_desk, shrunk
from weft.systems.multimodal_lm import MultimodalLM, Stream
from weft.training.stage import Recipe, Stage

SIZES = ("7b", "13b", "7b-linear", "13b-linear", "1.5-13b")
ENCODER = "streams.image.encoder."
MAX_TOKENS = 4096
PRETRAINING = Mixture.Config(
    parts={
        "coyo": Mixture.Part(data=LlavaJson.Config(path="coyo-25m/pairs.jsonl", images="coyo-25m/images")),
        "mmc4": Mixture.Part(
            data=Mmc4.Config(path="mmc4-core/docs_*.jsonl", images="mmc4-core/images", max_images=6, strict=False)
        ),
    },
    weighting="sizes",
)
INSTRUCTIONS = Mixture.Config(
    parts={
        "vflan": Mixture.Part(data=LlavaJson.Config(path="vflan/instructions.jsonl", images="vflan/images")),
        "sharegpt4v": Mixture.Part(data=LlavaJson.Config(path="sharegpt4v/instructions.jsonl", images="sharegpt4v/images")),
        "text": Mixture.Part(data=LlavaJson.Config(path="flan/text-1m.jsonl")),
    },
    weighting="sizes",
)


def vila(size: str = "7b") -> Recipe:
    """VILA at a published size, with the scripts' projector or the paper's; VILA-1.5 on Vicuna-13B."""
    if size not in SIZES:
        raise unknown_name("size of vila", size, SIZES)
    align, instruct = llava_1_5.llava_1_5("13b" if "13b" in size else "7b").stages
    align = replace(align, data=LlavaJson.Config(path="vila/align.json", images="vila/images"))
    instruct = replace(
        instruct,
        data=INSTRUCTIONS,
        max_tokens=MAX_TOKENS,
        micro_batch_size=4,
    )
    pretrain = replace(
        instruct,
        name="pretrain",
        title="teach projector and language model documents of pictures and texts",
        processor=replace(instruct.processor, template="interleaved"),
        data=PRETRAINING,
        batch_size=1024,
        optimizer=replace(instruct.optimizer, learning_rate=5e-5),
    )
    stages: tuple[Stage, ...] = (align, pretrain, instruct)
    if size.endswith("-linear"):
        system = _through(align, projector=Linear.Config())
        stages = tuple(replace(stage, system=system) for stage in stages)
    if size.startswith("1.5-"):
        stages = _of_1_5(stages)
    return Recipe(
        name="vila",
        size=size,
        paper="2312.07533",
        about="LLaVA-1.5's parts, pre-trained with an unfrozen language model on interleaved documents",
        stages=stages,
    )


def _of_1_5(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """The stages of VILA-1.5; the batch of the last one is that of two steps on one node of eight."""
    encoder = replace(SiglipVision.Config.sizes()["so400m-14-384"], pooling_head=False)
    system = _through(stages[0], encoder=encoder, projector=MLPDownsample.Config())
    image = ImageTransform(size=encoder.image_size, resize="direct", mean=HALF, std=HALF)
    align, pretrain, instruct = (
        replace(
            stage,
            system=system,
            processor=replace(stage.processor, transforms={"image": image}, boxes=FractionBoxes()),
            max_tokens=MAX_TOKENS,
        )
        for stage in stages
    )
    assert isinstance(encoder.feature_layer, int)
    unread = range(num_blocks_to_run(encoder.feature_layer, encoder.num_layers), encoder.num_layers)
    instruct = replace(
        instruct,
        train=("*", *(f"!{ENCODER}blocks.{i}.*" for i in unread), f"!{ENCODER}final_norm.*"),
        batch_size=256,
        optimizer=replace(instruct.optimizer, learning_rate=1e-4),
    )
    return align, pretrain, instruct


def _through(
    stage: Stage, projector: InputProjector.Config, encoder: ModalityEncoder.Config | None = None
) -> MultimodalLM.Config:
    """The stage's system with another projector and, where one is given, another tower."""
    assert isinstance(stage.system, MultimodalLM.Config)
    stream = Stream.Config(encoder=encoder or stage.system.streams["image"].encoder, projector=projector)
    return replace(stage.system, streams={"image": stream})


def tiny() -> Recipe:
    """VILA at CPU size, all of its stages; a document is three drawn desks and their captions."""
    system = MultimodalLM.Config(
        language_model=replace(Decoder.Config.tiny(), vocabulary=TINY_VOCABULARY, context=512),
        streams={
            "image": Stream.Config(
                encoder=replace(ClipVision.Config.tiny(), image_size=64, patch_size=16), projector=MLP.Config(depth=2)
            )
        },
        fusions=(TokenConcatenation.Config(),),
    )
    written = DeskConversations.Config(kind="text", num_turns=3, boxes=FractionBoxes(), epoch=1000)
    data = {
        "align": desk_captions(),
        "pretrain": Joined.Config(of=desk_captions(), number=3),
        "instruct": on_desk(INSTRUCTIONS, vflan=desk_dialogues(), sharegpt4v=desk_dialogues(), text=written),
    }
    return shrunk(vila(), dict.fromkeys(data, system), data, steps=20, image_size=64)
