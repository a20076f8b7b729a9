"""Published systems at the desk's size: their own stages and fusions around one tower and one way to talk.

A recipe's tiny form says what its stages train and take; the comparison says on parts of which size, for how many steps and on
which questions. What differs from the recipe, and why:

- The image tower is the desk's, trained once; its features are read at its end, so no block of it is left out of training.
  DINOv2 (MoF-LLaVA) is trained as that tower is; Llama 3.2's own tower starts from its blocks; Mono-InternVL has none.
- The language model is a decoder of the desk's size that has learned to answer from written-out scenes, trained once; OPT, MPT
  and T5 learn the same in turn. A frozen language model of this size can be shown pictures only if it can be told scenes.
- A Q-Former starts from BLIP-2's first stage, trained once, as in BLIP-2, InstructBLIP and MiniGPT-4.
- All talk alike (the desk's template), pictures keep their 64 pixels, tokens that keep places have a learned vector each
  (`Positioned`), and a tower that was trained before learns along at a tenth of the rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from weft.core.errors import ConfigError
from weft.core.interfaces import InputProjector, ModalityEncoder
from weft.data.dataset import Dataset
from weft.data.datasets.joined import Joined
from weft.data.images import HALF
from weft.data.media_transform import MediaTransform
from weft.data.tiles import PictureTiles
from weft.encoders.mixture import Mixture
from weft.encoders.mllama import Mllama
from weft.encoders.patch_vision import PatchVision
from weft.fusion.token_concatenation import TokenConcatenation
from weft.projectors.perceiver import Perceiver
from weft.projectors.positioned import Positioned
from weft.projectors.qformer import QFormer
from weft.projectors.qwen_resampler import QwenResampler
from weft.projectors.tiles import Tiles
from weft.recipes.comparison_candidates import DESK_SIZES
from weft.recipes.comparison_fusions import expert_copies, fusion_at_desk
from weft.recipes.comparison_plan import STREAM, picture_tokens
from weft.recipes.comparison_shared import (
    ASKED,
    BATCH,
    DINO,
    LANGUAGE_MODELS,
    MAX_TOKENS,
    NAMED,
    QUERIES,
    READER,
    STARTS,
    TALK,
    TURNS,
    questions,
    shared_stages,
)
from weft.recipes.desk import CHAT, GENTLE_MUON, MUON, TOWER, TRANSFORM
from weft.systems.fusion_encoder import FusionEncoder
from weft.systems.multimodal_lm import MultimodalSystem
from weft.systems.multimodal_seq2seq import MultimodalSeq2Seq
from weft.training.stage import Optimizer, Recipe, Stage

_EARLIER = 0.2  # of a system's steps, for each stage before its last
_MANY_TOKENS, _FEWER = 100, 0.7  # a picture of more tokens than these takes so much of the steps, for about the same time

_ENCODER, _PROJECTOR, _LANGUAGE = f"streams.{STREAM}.encoder.", f"streams.{STREAM}.projector.", "language_model."
TILE = 32  # Llama 3.2: a desk fills two by two


def at_desk(recipe: Recipe, steps: int) -> Recipe:
    """The whole of a row: shared stages that the system starts from, then the recipe's own stages in `steps` steps.

    A first stage without a language model is shared by all that start from its Q-Former.
    """
    stages = [stage for stage in recipe.stages if not isinstance(stage.system, FusionEncoder.Config)]
    system = system_at_desk(stages[-1].system)
    if picture_tokens(system, _transform(stages[-1].processor.transforms[STREAM], system)) > _MANY_TOKENS:
        steps = max(1, round(_FEWER * steps))
    earlier, last = max(1, round(_EARLIER * steps)), len(stages) - 1
    own = [_stage_at_desk(stage, earlier, NAMED, seed) for seed, stage in enumerate(stages[:-1], start=2)]
    own.append(_stage_at_desk(stages[-1], max(1, steps - last * earlier), ASKED, last + 2))
    start, shared = _start(stages[0]), shared_stages()
    own[0] = replace(own[0], takes=start, new=_fresh(own[0]))
    needed = {*start, *(name for first in start for name in STARTS.get(first, ()))}
    return replace(recipe, stages=(*(stage for name, stage in shared.items() if name in needed), *own))


def _stage_at_desk(stage: Stage, steps: int, mix: Mapping[str, float], seed: int) -> Stage:
    system = system_at_desk(stage.system)
    # a decoder writes one answer, and a Q-Former that reads instructions reads one
    single = isinstance(system, MultimodalSeq2Seq.Config) or system.instruction_vocabulary(STREAM) is not None
    data: Dataset.Config = questions("train", mix, seed=seed, single=single)
    batch = TURNS * BATCH if single else BATCH
    joined = isinstance(stage.data, Joined.Config)
    if isinstance(stage.data, Joined.Config):  # documents of several pictures
        one = questions("train", mix, seed=seed, single=True)
        data, batch = Joined.Config(of=replace(one, conversations_per_scene=1), number=stage.data.number), BATCH // 2
    train = tuple(p for p in stage.train if not p.startswith(f"!{_ENCODER}"))
    return replace(
        stage,
        system=system,
        train=train,
        processor=replace(CHAT, transforms={STREAM: _transform(stage.processor.transforms[STREAM], system)}),
        data=data,
        validation=questions("validation", mix, single=single),
        batch_size=batch,
        micro_batch_size=None,
        steps=steps,
        epochs=None,
        max_tokens=512 if joined else MAX_TOKENS,
        packing=True,
        optimizer=_optimizer(stage.optimizer, train, system.streams[STREAM].encoder),
        schedule=TALK,
        precision="bf16",
    )


def _optimizer(published: Optimizer, train: Sequence[str], encoder: ModalityEncoder.Config) -> Optimizer:
    """The demo's, with what the recipe trains at rates of its own, such as gates.

    What a frozen language model is shown through begins anew and learns faster than a model that has learned before. Tower and
    blocks that were trained before learn at a tenth of the rate: Muon would make them forget.
    """
    rates = {pattern: rate for pattern, rate in published.rates.items() if not pattern.startswith(_ENCODER)}
    if not isinstance(encoder, PatchVision.Config) and any(fnmatchcase(f"{_ENCODER}*", pattern) for pattern in train):
        rates[f"{_ENCODER}local_blocks.*" if isinstance(encoder, Mllama.Config) else f"{_ENCODER}*"] = 0.1
    talks = any(fnmatchcase(f"{_LANGUAGE}*", pattern) for pattern in train)
    return replace(GENTLE_MUON if talks else MUON, rates=rates)


def system_at_desk(config: Any) -> MultimodalSystem.Config:
    """The system on the desk's parts. Raises: ConfigError for a kind of language model that has no form for the desk."""
    if not isinstance(config, MultimodalSystem.Config):
        raise ConfigError(f"{type(config).__qualname__} answers no questions")
    kind = type(config.language_model)
    if kind not in LANGUAGE_MODELS:
        raise ConfigError(f"{config.language_model.part_name} has no size for the desk")
    stream = config.streams[STREAM]
    encoder = _encoder(stream.encoder)
    fusions = tuple(fusion_at_desk(fusion, encoder) for fusion in config.fusions)
    projector = _projector(stream.projector, encoder, in_text=isinstance(fusions[0], TokenConcatenation.Config))
    streams = {STREAM: replace(stream, encoder=encoder, projector=projector)}
    return replace(config, language_model=LANGUAGE_MODELS[kind][1], streams=streams, fusions=fusions)


def _encoder(encoder: ModalityEncoder.Config) -> ModalityEncoder.Config:
    if isinstance(encoder, PatchVision.Config):
        return replace(encoder, image_size=TOWER.image_size, patch_size=TOWER.patch_size, width=TOWER.width)
    if isinstance(encoder, Mixture.Config):
        return replace(encoder, first=TOWER, second=DINO, mean=HALF, std=HALF, second_mean=HALF, second_std=HALF)
    if isinstance(encoder, Mllama.Config):
        return replace(
            encoder,
            image_size=TILE,
            patch_size=TOWER.patch_size,
            width=TOWER.width,
            num_layers=TOWER.num_layers,
            num_global_layers=1,
            num_heads=TOWER.num_heads,
            feed_forward_width=TOWER.feed_forward_width,
            activation=TOWER.activation,
            kept_layers=(1, 3),
        )
    return TOWER


def _projector(projector: InputProjector.Config, encoder: ModalityEncoder.Config, in_text: bool) -> InputProjector.Config:
    if isinstance(projector, QFormer.Config):
        reads = None if projector.vocabulary is None else READER.vocabulary
        return replace(projector, **QUERIES, vocabulary=reads)
    if isinstance(projector, Perceiver.Config):
        sizes: dict[str, Any] = {**DESK_SIZES["projectors"]["perceiver"], "width": None, "head_width": 64}
        return replace(projector, **sizes, num_frames=None, num_media=None)
    if isinstance(projector, QwenResampler.Config):
        return replace(projector, **DESK_SIZES["projectors"]["qwen_resampler"])
    if isinstance(projector, Tiles.Config):
        return replace(projector, inner=_projector(projector.inner, encoder, in_text))
    if in_text and projector.keeps_places:
        return Positioned.Config(inner=projector, capacity=projector.num_tokens(encoder.layout()))
    return projector


def _transform(transform: MediaTransform, system: MultimodalSystem.Config) -> MediaTransform:
    """Tiles stay tiles, all else becomes the desk's picture, normalised as its towers were trained."""
    if isinstance(transform, PictureTiles):
        size = system.streams[STREAM].encoder.unit_shape[-1]
        return replace(transform, view=replace(transform.view, size=size, resize="direct", mean=HALF, std=HALF))
    return TRANSFORM["image"]


def _start(stage: Stage) -> dict[str, dict[str, str]]:
    """What a system's first stage takes from the shared ones."""
    system = system_at_desk(stage.system)
    stream = system.streams[STREAM]
    name, model = LANGUAGE_MODELS[type(system.language_model)]
    takes = {name: {f"{_LANGUAGE}*": _LANGUAGE, **expert_copies(system.fusions, model)}}
    if isinstance(stream.projector, QFormer.Config):
        takes["represent"] = {"streams.*": "streams."}
    elif isinstance(stream.encoder, Mixture.Config):
        takes |= {"tower": {"media.*": f"{_ENCODER}first."}, "tower_dinov2": {"media.*": f"{_ENCODER}second."}}
    elif isinstance(stream.encoder, Mllama.Config):
        parts = {"media.blocks.*": f"{_ENCODER}local_blocks.", "media.patch_embedding.*": f"{_ENCODER}patch_embedding."}
        takes["tower"] = parts
    elif not isinstance(stream.encoder, PatchVision.Config):
        takes["tower"] = {"media.*": _ENCODER}
    return takes


def _fresh(stage: Stage) -> tuple[str, ...]:
    """What no shared stage has."""
    assert isinstance(stage.system, MultimodalSystem.Config)
    stream = stage.system.streams[STREAM]
    fresh = [f"{_LANGUAGE}*before_attention.*", "added_tokens.*"]
    fresh.append(f"{_PROJECTOR}output.*" if isinstance(stream.projector, QFormer.Config) else f"{_PROJECTOR}*")
    if isinstance(stream.encoder, PatchVision.Config):
        fresh.append(f"{_ENCODER}*")
    if isinstance(stream.encoder, Mllama.Config):
        fresh += [f"{_ENCODER}{part}*" for part in ("class_", "position_", "tile", "norm_", "global_blocks.")]
    return tuple(fresh)
