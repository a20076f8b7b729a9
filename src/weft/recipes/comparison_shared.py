"""What the systems of a comparison start from: towers, language models, a Q-Former, each trained once at the desk's size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from weft.core.interfaces import LanguageModel
from weft.data.desk.dataset import DeskConversations
from weft.encoders.dinov2 import Dinov2
from weft.language_models.decoder import Decoder
from weft.language_models.mpt import Mpt
from weft.language_models.opt import Opt
from weft.language_models.t5 import T5
from weft.objectives.image_text_pretraining import ImageTextPretraining
from weft.objectives.next_token import NextToken
from weft.projectors.qformer import QFormer
from weft.recipes.comparison_candidates import DESK_SIZES
from weft.recipes.comparison_fusions import HEAD_WIDTH
from weft.recipes.comparison_plan import STREAM
from weft.recipes.desk import BOXES, CAPTIONS, CHAT, LANGUAGE, MUON, TOWER, TWO_TOWERS, VOCABULARY, desk
from weft.systems.fusion_encoder import FusionEncoder
from weft.systems.multimodal_lm import MultimodalLM, MultimodalSystem, Stream
from weft.systems.multimodal_seq2seq import MultimodalSeq2Seq
from weft.training.stage import Optimizer, Schedule, Stage

TYPES = ("name_single", "leftmost", "rightmost", "largest", "count", "count_colour", "read")
"""What every system is asked: short answers that a small budget can learn."""
ASKED = dict.fromkeys((*TYPES, "caption_short"), 1.0)
NAMED = dict.fromkeys(("caption_short", "caption_detailed", "name_single"), 1.0)
"""What the stages before a system's last are asked."""
TURNS, BATCH = 4, 24
MAX_TOKENS = 384

TOWER_STEPS, READING_STEPS, GUESSING_STEPS, QUERY_STEPS = 400, 800, 150, 500

TALK = Schedule(decay="trapezoid", warmup=0.03, cooldown=0.3)
_SIZE: dict[str, Any] = {
    size: getattr(LANGUAGE, size) for size in ("vocabulary", "width", "num_layers", "num_heads", "context")
}
LANGUAGE_MODELS: dict[type, tuple[str, LanguageModel.Config]] = {
    Decoder.Config: ("language", LANGUAGE),
    Opt.Config: ("language_opt", Opt.Config(**_SIZE, feed_forward_width=512)),
    Mpt.Config: ("language_mpt", Mpt.Config(**_SIZE, query_key_norm=True)),
    T5.Config: (
        "language_t5",
        T5.Config(**_SIZE, num_decoder_layers=4, head_width=HEAD_WIDTH, feed_forward_width=384, activation="gelu"),
    ),
}
"""By kind of language model the stage that trains it, and its form."""
DINO = Dinov2.Config(**DESK_SIZES["encoders"]["dinov2"])
QUERIES: dict[str, Any] = {**DESK_SIZES["projectors"]["q_former"], "context": 128}
READER = QFormer.Config(**QUERIES, vocabulary=VOCABULARY + 1, projected=False)
STARTS: dict[str, tuple[str, ...]] = {"represent": ("tower",), "text_only": ("language",)}
"""The shared stages that start from others."""
_PAIR_HEADS = ("media_projection.", "text_projection.", "matching_head.", "word_head.", "temperature")


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
            data=questions("train", ASKED, "blind", seed=1),
            validation=questions("validation", ASKED, "blind"),
            steps=GUESSING_STEPS,
        ),
        Stage(
            name="represent",
            title="BLIP-2's first stage: queries learn what a text says of a picture",
            system=FusionEncoder.Config(
                streams={STREAM: Stream.Config(encoder=TOWER, projector=READER)}, start_token=VOCABULARY, embedding_width=64
            ),
            train=("*", f"!streams.{STREAM}.encoder.*"),
            takes={"tower": {"media.*": f"streams.{STREAM}.encoder."}},
            new=(f"streams.{STREAM}.projector.*", *(f"{head}*" for head in _PAIR_HEADS)),
            processor=replace(CAPTIONS, template="blip_2_caption"),
            data=DeskConversations.Config(kind="caption"),
            validation=DeskConversations.Config(kind="caption", split="validation"),
            objective=ImageTextPretraining.Config(),
            batch_size=48,
            steps=QUERY_STEPS,
            max_tokens=96,
            optimizer=Optimizer(learning_rate=1e-3, betas=(0.9, 0.98), weight_decay=0.05),
            schedule=TALK,
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
        data=questions("train", mix, "text", single=single),
        validation=questions("validation", mix, "text", single=single),
        objective=NextToken.Config(),
        batch_size=2 * BATCH if single else BATCH,
        steps=READING_STEPS,
        max_tokens=MAX_TOKENS,
        packing=True,
        optimizer=MUON,
        schedule=TALK,
    )


def questions(
    split: Any, mix: Mapping[str, float], kind: Any = "dialogue", seed: int = 0, single: bool = False
) -> DeskConversations.Config:
    """Eight questions a picture: two conversations of four, or, `single`, eight of one."""
    turns = 1 if single else TURNS
    return DeskConversations.Config(
        kind=kind, split=split, seed=seed, mix=mix, boxes=BOXES, num_turns=turns, conversations_per_scene=2 * TURNS // turns
    )
