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

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from weft.core.errors import ConfigError
from weft.core.interfaces import Fusion, InputProjector, LanguageModel, ModalityEncoder
from weft.data.dataset import Dataset
from weft.data.datasets.joined import Joined
from weft.data.desk.dataset import DeskConversations
from weft.data.images import HALF
from weft.data.media_transform import MediaTransform
from weft.data.tiles import PictureTiles
from weft.encoders.dinov2 import Dinov2
from weft.encoders.mixture import Mixture
from weft.encoders.mllama import Mllama
from weft.encoders.patch_vision import PatchVision
from weft.fusion.cross_attention import CrossAttention, GatedDense, GatedSwiGLU
from weft.fusion.token_concatenation import TokenConcatenation
from weft.fusion.visual_expert import VisualExpert
from weft.language_models.decoder import Decoder
from weft.language_models.mpt import Mpt
from weft.language_models.opt import Opt
from weft.language_models.t5 import T5
from weft.objectives.image_text_pretraining import ImageTextPretraining
from weft.objectives.next_token import NextToken
from weft.projectors.perceiver import Perceiver
from weft.projectors.positioned import Positioned
from weft.projectors.qformer import QFormer
from weft.projectors.qwen_resampler import QwenResampler
from weft.projectors.tiles import Tiles
from weft.recipes.comparison_candidates import DESK_SIZES
from weft.recipes.comparison_plan import STREAM
from weft.recipes.desk import BOXES, CAPTIONS, CHAT, GENTLE_MUON, LANGUAGE, MUON, TOWER, TRANSFORM, TWO_TOWERS, VOCABULARY, desk
from weft.systems.fusion_encoder import FusionEncoder
from weft.systems.multimodal_lm import MultimodalLM, MultimodalSystem, Stream
from weft.systems.multimodal_seq2seq import MultimodalSeq2Seq
from weft.training.stage import Optimizer, Recipe, Schedule, Stage

TYPES = ("name_single", "leftmost", "rightmost", "largest", "count", "count_colour", "read")
"""What every system is asked: short answers that a small budget can learn."""
ASKED = dict.fromkeys((*TYPES, "caption_short"), 1.0)
NAMED = dict.fromkeys(("caption_short", "caption_detailed", "name_single"), 1.0)
"""What the stages before a system's last are asked."""
TURNS, BATCH = 4, 24
MAX_TOKENS = 384
_EARLIER = 0.2  # of a system's steps, for each stage before its last
_MANY_TOKENS, _FEWER = 100, 0.7  # a picture of more tokens than these takes so much of the steps, for about the same time

TOWER_STEPS, READING_STEPS, GUESSING_STEPS, QUERY_STEPS = 400, 800, 150, 500

_ENCODER, _PROJECTOR, _LANGUAGE = f"streams.{STREAM}.encoder.", f"streams.{STREAM}.projector.", "language_model."
_TALK = Schedule(decay="trapezoid", warmup=0.03, cooldown=0.3)
_SIZE: dict[str, Any] = {"vocabulary": VOCABULARY, "width": LANGUAGE.width, "num_layers": 4, "num_heads": 2, "context": 512}
LANGUAGE_MODELS: dict[type, tuple[str, LanguageModel.Config]] = {
    Decoder.Config: ("language", LANGUAGE),
    Opt.Config: ("language_opt", Opt.Config(**_SIZE, feed_forward_width=512)),
    Mpt.Config: ("language_mpt", Mpt.Config(**_SIZE)),
    T5.Config: (
        "language_t5",
        T5.Config(**_SIZE, num_decoder_layers=4, head_width=64, feed_forward_width=384, activation="gelu"),
    ),
}
"""By kind of language model the stage that trains it, and its form."""
DINO = Dinov2.Config(**DESK_SIZES["encoders"]["dinov2"])
_QUERIES: dict[str, Any] = {**DESK_SIZES["projectors"]["q_former"], "context": 128}
READER = QFormer.Config(**_QUERIES, vocabulary=VOCABULARY + 1, projected=False)
TILE = 32  # Llama 3.2: a desk fills two by two


def shared_stages() -> dict[str, Stage]:
    """What systems start from, by name."""
    tower = replace(desk().stage("tower"), steps=TOWER_STEPS)
    stages = [
        tower,
        replace(tower, name="tower_dinov2", system=replace(TWO_TOWERS, media=DINO), new=("*",)),
        *(_reading(name, config) for name, config in LANGUAGE_MODELS.values()),
        replace(
            _reading("text_only", LANGUAGE),
            title="the same language model learns what is answered without a picture: the text-only baseline",
            new=(),
            takes={"language": {"*": ""}},
            data=_questions("train", ASKED, "blind", seed=1),
            validation=_questions("validation", ASKED, "blind"),
            steps=GUESSING_STEPS,
        ),
        Stage(
            name="represent",
            title="BLIP-2's first stage: queries learn what a text says of a picture",
            system=FusionEncoder.Config(
                streams={STREAM: Stream.Config(encoder=TOWER, projector=READER)}, start_token=VOCABULARY, embedding_width=64
            ),
            train=("*", f"!{_ENCODER}*"),
            takes={"tower": {"media.*": _ENCODER}},
            new=(f"{_PROJECTOR}*", "media_projection.*", "text_projection.*", "*head.*", "words.*", "*temperature*", "*scale*"),
            processor=replace(CAPTIONS, template="blip_2_caption"),
            data=DeskConversations.Config(kind="caption"),
            validation=DeskConversations.Config(kind="caption", split="validation"),
            objective=ImageTextPretraining.Config(),
            batch_size=48,
            steps=QUERY_STEPS,
            max_tokens=96,
            optimizer=Optimizer(learning_rate=1e-3, betas=(0.9, 0.98), weight_decay=0.05),
            schedule=_TALK,
        ),
    ]
    return {stage.name: stage for stage in stages}


def _reading(name: str, model: LanguageModel.Config) -> Stage:
    """A language model learns to answer about scenes that it is told."""
    system: MultimodalSystem.Config = (
        MultimodalSeq2Seq.Config(language_model=model)
        if isinstance(model, T5.Config)
        else MultimodalLM.Config(language_model=model)
    )
    single, mix = isinstance(model, T5.Config), ASKED | NAMED
    return Stage(
        name=name,
        title="a language model learns to answer about scenes that are written out",
        system=system,
        train=("*",),
        new=("*",),
        processor=CHAT,
        data=_questions("train", mix, "text", single=single),
        validation=_questions("validation", mix, "text", single=single),
        objective=NextToken.Config(),
        batch_size=2 * BATCH if single else BATCH,
        steps=READING_STEPS,
        max_tokens=MAX_TOKENS,
        packing=True,
        optimizer=MUON,
        schedule=_TALK,
    )


def _questions(
    split: Any, mix: Mapping[str, float], kind: Any = "dialogue", seed: int = 0, single: bool = False
) -> DeskConversations.Config:
    """Eight questions a picture: two conversations of four, or, `single`, eight of one."""
    turns = 1 if single else TURNS
    return DeskConversations.Config(
        kind=kind, split=split, seed=seed, mix=mix, boxes=BOXES, num_turns=turns, conversations_per_scene=2 * TURNS // turns
    )


def at_desk(recipe: Recipe, steps: int) -> Recipe:
    """The whole of a row: shared stages that the system starts from, then the recipe's own stages in `steps` steps."""
    shared, needed = shared_stages(), _needed(recipe)
    if _tokens(recipe.stages[-1]) > _MANY_TOKENS:
        steps = max(1, round(_FEWER * steps))
    each = max(1, round(_EARLIER * steps))
    last = len(recipe.stages) - 1
    own = []
    for index, stage in enumerate(recipe.stages):
        own.append(_stage_at_desk(stage, max(1, steps - last * each) if index == last else each, index == last, index + 2))
    own[0] = replace(own[0], takes=_start(recipe.stages[0]), new=_fresh(own[0]))
    return replace(recipe, stages=(*(shared[name] for name in needed), *own))


def _tokens(stage: Stage) -> int:
    """Of a picture, wherever they stand."""
    system = system_at_desk(stage.system)
    stream, transform = system.streams[STREAM], _transform(stage.processor.transforms[STREAM], system)
    opened = transform.open(np.zeros((TOWER.image_size, TOWER.image_size, 3), np.uint8), stream.encoder.layout())
    return stream.projector.num_tokens(opened.layout)


def _stage_at_desk(stage: Stage, steps: int, last: bool, seed: int) -> Stage:
    system = system_at_desk(stage.system)
    # a decoder writes one answer, and a Q-Former that reads instructions reads one
    single = isinstance(system, MultimodalSeq2Seq.Config) or system.instruction_vocabulary(STREAM) is not None
    mix = ASKED if last else NAMED
    data: Dataset.Config = _questions("train", mix, seed=seed, single=single)
    batch = TURNS * BATCH if single else BATCH
    joined = isinstance(stage.data, Joined.Config)
    if isinstance(stage.data, Joined.Config):  # documents of several pictures
        one = _questions("train", mix, seed=seed, single=True)
        data, batch = Joined.Config(of=replace(one, conversations_per_scene=1), number=stage.data.number), BATCH // 2
    trained_before = not isinstance(system.streams[STREAM].encoder, PatchVision.Config | Mllama.Config)
    train = tuple(p for p in stage.train if not p.startswith(f"!{_ENCODER}"))
    trains_tower = any(p in ("*", "streams.*", f"streams.{STREAM}.*", f"{_ENCODER}*") for p in train)
    rates = {p: r for p, r in stage.optimizer.rates.items() if not p.startswith(_ENCODER)}
    if trains_tower and trained_before:
        rates[f"{_ENCODER}*"] = 0.1
    if trains_tower and isinstance(system.streams[STREAM].encoder, Mllama.Config):
        rates[f"{_ENCODER}local_blocks.*"] = 0.1
    return replace(
        stage,
        system=system,
        train=train,
        processor=replace(CHAT, transforms={STREAM: _transform(stage.processor.transforms[STREAM], system)}),
        data=data,
        validation=_questions("validation", mix, single=single),
        batch_size=batch,
        micro_batch_size=None,
        steps=steps,
        epochs=None,
        max_tokens=512 if joined else MAX_TOKENS,
        packing=True,
        optimizer=replace(GENTLE_MUON, rates=rates),
        schedule=_TALK,
        precision="bf16",
    )


def system_at_desk(config: Any) -> MultimodalSystem.Config:
    """The system on the desk's parts. Raises: ConfigError for a kind of language model that has no form for the desk."""
    if not isinstance(config, MultimodalSystem.Config):
        raise ConfigError(f"{type(config).__qualname__} answers no questions")
    kind = type(config.language_model)
    if kind not in LANGUAGE_MODELS:
        raise ConfigError(f"{config.language_model.part_name} has no size for the desk")
    stream = config.streams[STREAM]
    encoder = _encoder(stream.encoder)
    fusions = tuple(_fusion(fusion, encoder) for fusion in config.fusions)
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
        return replace(projector, **_QUERIES, vocabulary=reads)
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


def _fusion(fusion: Fusion.Config, encoder: ModalityEncoder.Config) -> Fusion.Config:
    """Gated blocks in front of every second block, from the place where the recipe has the first."""
    if not isinstance(fusion, CrossAttention.Config):
        return fusion
    block = fusion.block
    if isinstance(block, GatedDense) and block.num_heads is not None:
        block = replace(block, num_heads=LANGUAGE.num_heads, head_width=64)
    if isinstance(block, GatedSwiGLU) and block.num_key_value_heads is not None:
        block = replace(block, num_key_value_heads=LANGUAGE.num_key_value_heads)
    width = None if fusion.memory_width is None else encoder.output_width
    return replace(fusion, block=block, every=2, first=fusion.first % 2, memory_width=width)


def _transform(transform: MediaTransform, system: MultimodalSystem.Config) -> MediaTransform:
    """Tiles stay tiles, all else becomes the desk's picture, normalised as its towers were trained."""
    if isinstance(transform, PictureTiles):
        size = system.streams[STREAM].encoder.unit_shape[-1]
        return replace(transform, view=replace(transform.view, size=size, resize="direct", mean=HALF, std=HALF))
    return TRANSFORM["image"]


def _needed(recipe: Recipe) -> tuple[str, ...]:
    """The shared stages that a system starts from, in order."""
    takes = set(_start(recipe.stages[0]))
    if "represent" in takes:
        takes.add("tower")
    return tuple(name for name in shared_stages() if name in takes)


def _start(stage: Stage) -> dict[str, dict[str, str]]:
    """What a system's first stage takes from the shared ones."""
    system = system_at_desk(stage.system)
    stream = system.streams[STREAM]
    name, model = LANGUAGE_MODELS[type(system.language_model)]
    language = {f"{_LANGUAGE}*": _LANGUAGE}
    for fusion in system.fusions:
        if isinstance(fusion, VisualExpert.Config):  # experts start as copies
            layers = ("feed_forward", "attention") if fusion.attention else ("feed_forward",)
            for block in (f"{_LANGUAGE}blocks.{i}." for i in range(_num_layers(model))):
                language |= {f"{block}{layer}.*": f"{block}{layer}.routes.visual." for layer in layers}
    takes = {name: language}
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


def _num_layers(model: LanguageModel.Config) -> int:
    assert isinstance(model, Decoder.Config)  # experts stand in decoders
    return model.num_layers
