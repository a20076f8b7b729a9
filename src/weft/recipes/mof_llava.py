"""Mixture of Features: LLaVA that also sees through DINOv2, which tells apart what looks alike to CLIP.

Source: arXiv:2401.06209. Interleaved, each encoder has a projector of its own and their tokens take turns; additive, one
projector reads a weighted sum. Both encoders see the same pixels, normalised for CLIP, as in the released code, which is for
LLaVA-1.5 at 336 pixels (1,152 tokens); the paper describes 224 (512 tokens). Rates and batches are the paper's: the
released script for LLaVA-1.5 takes half the rate in stage 1 and a batch of 176 in stage 2.
"""

from __future__ import annotations

from dataclasses import replace

from weft.core.errors import unknown_name
from weft.core.interfaces import InputProjector, LanguageModel
from weft.encoders.clip import ClipVision
from weft.encoders.dinov2 import Dinov2
from weft.encoders.mixture import CLIP_MEAN, CLIP_STD, Mixture
from weft.fusion.token_concatenation import TokenConcatenation
from weft.language_models.decoder import Decoder
from weft.projectors.interleaved import Interleaved
from weft.projectors.mlp import MLP
from weft.recipes import llava, llava_1_5
from weft.recipes.shrinking import TINY_VOCABULARY, desk_captions, desk_dialogues, shrunk
from weft.systems.multimodal_lm import MultimodalLM, Stream
from weft.training.stage import Recipe

SIZES = ("7b", "13b", "llava-7b", "llava-13b", "additive-7b", "additive-13b")
DINO_SHARE = 0.5  # of the additive mixture; above three quarters instructions are no longer followed


def mof_llava(size: str = "7b") -> Recipe:
    """Interleaved features in LLaVA-1.5, interleaved in LLaVA ("llava-"), or added in LLaVA ("additive-")."""
    if size not in SIZES:
        raise unknown_name("size of mof-llava", size, SIZES)
    of_1_5, additive = "-" not in size, size.startswith("additive-")
    language_model = size.rpartition("-")[2]
    base = llava_1_5.llava_1_5(language_model) if of_1_5 else llava.llava(language_model)
    mixture = Mixture.Config.sizes()["l-14-336" if of_1_5 else "l-14"]
    mixture = replace(mixture, second_mean=CLIP_MEAN, second_std=CLIP_STD, alpha=DINO_SHARE if additive else None)
    align, instruct = base.stages
    assert isinstance(align.system, MultimodalLM.Config)
    system = _system(align.system.language_model, mixture)
    align = replace(align, system=system, optimizer=replace(align.optimizer, learning_rate=2e-3 if of_1_5 else 1e-3))
    instruct = replace(instruct, system=system, batch_size=128)
    return Recipe(
        name="mof-llava",
        size=size,
        paper="2401.06209",
        about="LLaVA with CLIP's and DINOv2's features, in turns or added",
        stages=(align, instruct),
    )


def tiny() -> Recipe:
    """Interleaved features at CPU size, both stages."""
    mixture = Mixture.Config(
        first=replace(ClipVision.Config.tiny(), image_size=64, patch_size=16),
        second=replace(Dinov2.Config.tiny(), image_size=64, position_image_size=80, patch_size=16, num_registers=0),
        second_mean=CLIP_MEAN,
        second_std=CLIP_STD,
    )
    system = _system(replace(Decoder.Config.tiny(), vocabulary=TINY_VOCABULARY, context=512), mixture)
    data = {"align": desk_captions(), "instruct": desk_dialogues()}
    return shrunk(mof_llava(), dict.fromkeys(data, system), data, steps=20, image_size=64)


def _system(language_model: LanguageModel.Config, mixture: Mixture.Config) -> MultimodalLM.Config:
    projector: InputProjector.Config = MLP.Config(depth=2)
    if mixture.alpha is None:
        projector = Interleaved.Config(inner=projector)
    return MultimodalLM.Config(
        language_model=language_model,
        streams={"image": Stream.Config(encoder=mixture, projector=projector)},
        fusions=(TokenConcatenation.Config(),),
    )
