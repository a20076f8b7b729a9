"""IDEFICS: the open reproduction of Flamingo on CLIP-ViT-H and LLaMA, trained on whole web pages.

Source: arXiv:2306.16527 and the published models' cards. Pre-training reads OBELICS and LAION once, Wikipedia and PMD three
times, image tower and language model frozen; the instructed models then train all parts on dialogues in given proportions,
with 5.1% pairs and 30.7% documents among them, written as before. Rates, steps and lengths are the cards'; their batches are
given in tokens, those here in samples.
"""

from __future__ import annotations

from dataclasses import replace

from weft.checkpoints.idefics import fusion
from weft.core.errors import unknown_name
from weft.data.datasets.llava_json import LlavaJson
from weft.data.datasets.mixture import Mixture
from weft.data.datasets.obelics import Obelics
from weft.data.desk.documents import DeskDocuments
from weft.data.images import ImageTransform
from weft.data.processor import Processor
from weft.encoders.clip import ClipVision
from weft.language_models.decoder import Decoder
from weft.layers.added_tokens import AddedTokens
from weft.objectives.next_token import NextToken
from weft.projectors.perceiver import Perceiver
from weft.recipes.shrinking import TINY_VOCABULARY, desk_captions, desk_dialogues, on_desk, shrunk, with_fast_gates
from weft.systems.multimodal_lm import MultimodalLM, Stream
from weft.training.stage import Optimizer, Recipe, Schedule, Stage

SIZES = ("9b", "80b")
EVERY = 4
PEAK = {"9b": (1e-5, 1e-5), "80b": (5e-5, 3e-6)}  # the rates of the two stages
TRAINED = ("streams.image.projector.*", "language_model.blocks.*.before_attention.*", "added_tokens.*")
# the image tower's last norm is in the files, and its features are read before it
EVERYTHING = ("streams.*", "!streams.image.encoder.final_norm.*", "language_model.*", "added_tokens.*")
VIT_H = ClipVision.Config(
    image_size=224, patch_size=14, width=1280, num_layers=32, num_heads=16, feed_forward_width=5120, activation="gelu",
    feature_layer=-1, keep_class_token=True,
)  # fmt: skip
DOCUMENT = "idefics_document"
_OBELICS = Obelics.Config(path="obelics/*.jsonl", images="obelics/images", strict=False)
_LAION = LlavaJson.Config(path="laion-2b/pairs.jsonl", images="laion-2b/images")
PRETRAINING = Mixture.Config(
    parts={
        "obelics": Mixture.Part(data=_OBELICS),
        "wikipedia": Mixture.Part(
            data=Obelics.Config(path="wikipedia/*.jsonl", images="wikipedia/images", strict=False), weight=3
        ),
        "laion": Mixture.Part(data=_LAION),
        "pmd": Mixture.Part(data=LlavaJson.Config(path="pmd/pairs.jsonl", images="pmd/images"), weight=3),
    },
    weighting="sizes",
)
_RATIOS = {
    "m3it": 7.7, "lrv": 1.7, "llava": 5.9, "llavar": 6.3, "svit": 11.4, "differences": 2.1, "ultrachat": 29.1,
}  # fmt: skip
INSTRUCTIONS = Mixture.Config(
    parts={
        name: Mixture.Part(
            data=LlavaJson.Config(path=f"{name}/dialogues.jsonl", images="" if name == "ultrachat" else f"{name}/images"),
            weight=ratio,
        )
        for name, ratio in _RATIOS.items()
    }
    | {
        "laion": Mixture.Part(data=_LAION, weight=5.1, template=DOCUMENT),
        "obelics": Mixture.Part(data=_OBELICS, weight=30.7, template=DOCUMENT),
    },
)
LLAMA_65B = Decoder.Config(
    width=8192, num_layers=80, num_heads=64, num_key_value_heads=64, feed_forward_width=22_016, norm_eps=1e-5
)


def idefics(size: str = "9b") -> Recipe:
    """IDEFICS at a published size."""
    if size not in SIZES:
        raise unknown_name("size of idefics", size, SIZES)
    perceiver = replace(Perceiver.Config.sizes()["idefics"], head_norms=True)
    system = MultimodalLM.Config(
        language_model=Decoder.Config.sizes()["llama-7b"] if size == "9b" else LLAMA_65B,
        streams={"image": Stream.Config(encoder=VIT_H, projector=perceiver)},
        fusions=(fusion(EVERY, VIT_H.width, "scalar"),),
        added_tokens=AddedTokens.Config(),  # the tags of pictures and what stands around them
    )
    processor = Processor.Config(template=DOCUMENT, transforms={"image": ImageTransform(size=224)})
    pretrain = Stage(
        name="pretrain",
        title="teach the resampler and the gated blocks on whole web pages",
        system=system,
        train=TRAINED,
        processor=processor,
        data=PRETRAINING,
        objective=NextToken.Config(),
        batch_size=2048,
        micro_batch_size=16,
        steps=200_000,
        max_tokens=1024,
        packing=True,
        optimizer=Optimizer(learning_rate=PEAK[size][0], weight_decay=0.1, weight_decay_except=("streams.*", "added_tokens.*")),
        schedule=Schedule(decay="linear", warmup=2000, final=0.6),
    )
    instruct = replace(
        pretrain,
        name="instruct",
        title="teach all parts to follow instructions",
        train=EVERYTHING,
        processor=replace(processor, template="idefics"),
        data=INSTRUCTIONS,
        batch_size=256,
        steps=22_000,
        max_tokens=2048,
        optimizer=replace(pretrain.optimizer, learning_rate=PEAK[size][1]),
        schedule=Schedule(decay="linear", warmup=1000, final=0.12),
    )
    return Recipe(
        name="idefics",
        size=size,
        paper="2306.16527",
        about="CLIP-ViT-H through a Perceiver into gated cross-attention of LLaMA",
        stages=(pretrain, instruct),
    )


def tiny() -> Recipe:
    """IDEFICS at CPU size."""
    encoder = replace(ClipVision.Config.tiny(), image_size=64, patch_size=16, feature_layer=-1, keep_class_token=True)
    perceiver = replace(Perceiver.Config.tiny(), activation="relu", head_norms=True, num_frames=None, num_media=None)
    decoder = replace(Decoder.Config.tiny(), num_key_value_heads=4, vocabulary=TINY_VOCABULARY - 3, context=512)
    system = MultimodalLM.Config(
        language_model=decoder,
        streams={"image": Stream.Config(encoder=encoder, projector=perceiver)},
        fusions=(fusion(2, encoder.width, "vector"),),
        added_tokens=AddedTokens.Config(num_inputs=3, num_outputs=3),
    )
    documents, captions = DeskDocuments.Config(epoch=1000), desk_captions()
    data = {
        "pretrain": on_desk(PRETRAINING, obelics=documents, wikipedia=documents, laion=captions, pmd=captions),
        "instruct": on_desk(INSTRUCTIONS, **dict.fromkeys(_RATIOS, desk_dialogues()), laion=captions, obelics=documents),
    }
    return with_fast_gates(shrunk(idefics(), dict.fromkeys(data, system), data, steps=20, image_size=64))
