"""What the demo's report shows, gathered from the run folder, the served weights and the evaluation."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import nn

from weft.core.conversation import Conversation
from weft.evaluation.benchmark import Item
from weft.evaluation.benchmarks.desk import DeskBenchmark
from weft.evaluation.evaluation import MODEL, Evaluation
from weft.evaluation.records import Record
from weft.evaluation.report.content import (
    Gaze,
    Part,
    PartState,
    ReportContent,
    RunFacts,
    StageFacts,
    Weave,
    read_curves,
)
from weft.evaluation.report.exhibits import as_picture, choose_exhibits
from weft.inference.attention_maps import attention_map
from weft.inference.model import Model
from weft.inference.sampling import Sampling
from weft.recipes.conditions import commit, hardware
from weft.systems.multimodal_lm import Stream
from weft.training.freezing import select_names
from weft.training.stage import Recipe, Stage

LOOKED_AT = ("name_single", "read", "count", "colour_of_digit", "box", "refer")
_LONGEST_GAZE = 6  # answer tokens that a map is drawn for


@dataclass(frozen=True)
class Circumstances:
    """Where, how long, from which seed and in how many processes a demo ran. Units: seconds."""

    folder: Path
    minutes: float
    seed: int
    stage_seconds: dict[str, float]
    evaluation_seconds: float
    processes: int = 1


def report_content(
    recipe: Recipe, model: Model, benchmark: DeskBenchmark, evaluation: Evaluation, circumstances: Circumstances
) -> ReportContent:
    """The report of one demo run; also writes `report/canvas.png`, a held-out picture to chat about."""
    items, records = benchmark.items(), evaluation.runs[MODEL]
    shown = next(item for item in items if item.type == "caption_short" and len(item.subject.scene.digits) > 2)
    report = circumstances.folder / "report"
    report.mkdir(parents=True, exist_ok=True)
    Image.fromarray(as_picture(next(shown.conversation.media()).source)).save(report / "canvas.png")
    return ReportContent(
        facts=run_facts(recipe, circumstances),
        evaluation=evaluation,
        by_seed={circumstances.seed: evaluation},
        weave=_weave(recipe, model, shown, records, circumstances),
        curves=read_curves(circumstances.folder / "metrics.jsonl", {s.name: s.title for s in recipe.stages}),
        exhibits=choose_exhibits(items, records, model.processor.config.boxes.parse),
        gazes=_gazes(model, items, records),
    )


def run_facts(recipe: Recipe, circumstances: Circumstances) -> RunFacts:
    """Time, memory, machine, commit and versions."""
    stages = circumstances.stage_seconds
    return RunFacts(
        title="A multimodal language model grown from nothing",
        recipe=recipe.name,
        training_seconds=sum(stages.values()) or None,
        evaluation_seconds=circumstances.evaluation_seconds,
        peak_memory_bytes=peak_memory_bytes(),
        seeds=(circumstances.seed,),
        hardware=hardware(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        commit=commit(),
        versions={name: version(name) for name in ("torch", "tokenizers", "numpy")} | {"python": platform.python_version()},
        command=(
            f"weft demo --minutes {circumstances.minutes:g} --seed {circumstances.seed} --processes {circumstances.processes}"
        ),
        date=time.strftime("%Y-%m-%d"),
    )


def peak_memory_bytes() -> int:
    """The most memory that this process ever held, and the largest that it started: pages that they share count twice."""
    import resource

    peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes except on macOS


def _weave(recipe: Recipe, model: Model, shown: Item, records: Sequence[Record], circumstances: Circumstances) -> Weave:
    system = model.system
    stream = cast(Stream, system.streams["image"])
    layout = stream.encoder.config.layout()
    record = next(record for record in records if record.id == shown.id)
    prompt = model.processor.encode(shown.conversation, reply=True)
    num_media_tokens = int(prompt.modality.sum())
    language = system.config.language_model
    return Weave(
        picture=as_picture(next(shown.conversation.media()).source),
        grid=(layout.height, layout.width),
        encoder=Part(
            "image encoder",
            f"{type(stream.encoder).__name__}, {stream.encoder.config.num_layers} layers",
            _count(stream.encoder),
        ),
        projector=Part("projector", "2x2 pixel shuffle, MLP, positions", _count(stream.projector)),
        language_model=Part("language model", f"decoder, {language.num_layers} layers", _count(system.language_model)),
        num_media_tokens=num_media_tokens,
        question=record.question,
        num_question_tokens=len(prompt) - num_media_tokens,
        answer=record.reply,
        stages=tuple(_stage_facts(stage, circumstances) for stage in recipe.stages),
    )


_PLACES = {
    "image encoder": ("media.*", "streams.image.encoder.*"),
    "projector": ("streams.image.projector.*",),
    "language model": ("language_model.*",),
    "text tower": ("text.*",),
}


def _stage_facts(stage: Stage, circumstances: Circumstances) -> StageFacts:
    with torch.device("meta"):
        names = {name: p.numel() for name, p in stage.system.build().named_parameters()}
    trained = set(select_names(names, stage.train, f"stage {stage.name!r}"))
    parts: dict[str, PartState] = {}
    for part, patterns in _PLACES.items():
        here = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
        if here:
            parts[part] = "trained" if trained.intersection(here) else "frozen"
    assert stage.steps is not None  # the demo plans its stages in steps
    return StageFacts(
        name=stage.name,
        title=stage.title,
        parts=parts,
        steps=stage.steps,
        samples=stage.steps * stage.batch_size,
        seconds=circumstances.stage_seconds.get(stage.name),
        trained_parameters=sum(names[name] for name in trained),
    )


def _gazes(model: Model, items: Sequence[Item], records: Sequence[Record]) -> list[Gaze]:
    """Of a few question types the first right answer, chosen by rule, each of its tokens with its map."""
    by_id = {record.id: record for record in records}
    gazes = []
    for type in LOOKED_AT:
        right = [
            item for item in items if item.type == type and by_id[item.id].score >= 1.0 and len(item.subject.scene.digits) > 1
        ]
        if right:
            gazes.append(_gaze(model, right[0], by_id[right[0].id]))
    return gazes


def _gaze(model: Model, item: Item, record: Record) -> Gaze:
    conversation: Conversation = item.conversation
    (reply,) = model.generate([conversation], Sampling(max_new_tokens=32))
    tokens = reply.token_ids[:_LONGEST_GAZE]
    maps = [attention_map(model, conversation, reply.token_ids, chosen=[place]) for place in range(len(tokens))]
    return Gaze(
        picture=as_picture(next(conversation.media()).source),
        question=record.question,
        words=tuple(model.processor.decode([token]) for token in tokens),
        maps=np.stack([m.values.numpy() for m in maps]),
        truth=record.truth,
        score=record.score,
        difference=max(m.logit_difference for m in maps),
    )


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
