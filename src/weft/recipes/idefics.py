"""IDEFICS: the open reproduction of Flamingo on CLIP-ViT-H and LLaMA, trained on whole web pages.

Source: arXiv:2306.16527. Pre-training reads OBELICS, Wikipedia, LAION and PMD with image tower and language model frozen; the
instructed models then train all parts. Here each stage reads documents in LLaVA's JSON; the rates are those of the stages'
kind, the paper's of the second are not known.
"""

from __future__ import annotations

from dataclasses import replace

from weft.checkpoints.idefics import fusion
from weft.core.errors import unknown_name
from weft.data.datasets.llava_json import LlavaJson
from weft.data.images import ImageTransform
from weft.data.processor import Processor
from weft.encoders.clip import ClipVision
from weft.language_models.decoder import Decoder
from weft.layers.added_tokens import AddedTokens
from weft.objectives.next_token import NextToken
from weft.projectors.perceiver import Perceiver
from weft.recipes.shrinking import TINY_VOCABULARY, desk_dialogues, shrunk, with_fast_gates
from weft.systems.multimodal_lm import MultimodalLM, Stream
from weft.training.stage import Optimizer, Recipe, Schedule, Stage

SIZES = ("9b", "80b")
EVERY = 4
TRAINED = ("streams.image.projector.*", "language_model.blocks.*.before_attention.*", "added_tokens.*")
# the image tower's last norm is in the files, and its features are read before it
EVERYTHING = ("streams.*", "!streams.image.encoder.final_norm.*", "language_model.*", "added_tokens.*")
VIT_H = ClipVision.Config(
    image_size=224, patch_size=14, width=1280, num_layers=32, num_heads=16, feed_forward_width=5120, activation="gelu",
    feature_layer=-1, keep_class_token=True,
)  # fmt: skip
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
    processor = Processor.Config(template="idefics", transforms={"image": ImageTransform(size=224)})
    pretrain = Stage(
        name="pretrain",
        title="teach the resampler and the gated blocks on whole web pages",
        system=system,
        train=TRAINED,
        processor=processor,
        data=LlavaJson.Config(path="obelics/documents.jsonl", images="obelics/images"),
        objective=NextToken.Config(),
        batch_size=2048,
        micro_batch_size=16,
        epochs=1,
        max_tokens=1024,
        packing=True,
        optimizer=Optimizer(learning_rate=1e-4, weight_decay=0.1, weight_decay_except=("streams.*", "added_tokens.*")),
        schedule=Schedule(decay="constant", warmup=2000),
    )
    instruct = replace(
        pretrain,
        name="instruct",
        title="teach all parts to follow instructions",
        train=EVERYTHING,
        data=LlavaJson.Config(path="idefics-instruct/dialogues.jsonl", images="idefics-instruct/images"),
        batch_size=256,
        optimizer=replace(pretrain.optimizer, learning_rate=1e-5),
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
    data = {"pretrain": desk_dialogues(), "instruct": desk_dialogues()}
    return with_fast_gates(shrunk(idefics(), dict.fromkeys(data, system), data, steps=20, image_size=64))
