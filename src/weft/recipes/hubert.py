"""HuBERT: an encoder of speech learns to say of hidden frames to which cluster they belong, in rounds of better clusters.

Source: arXiv:2106.07447 and its released configs. The first round's clusters are of MFCC, the second's of a middle layer of the
first round's model, and the second model starts afresh; the larger models learn the clusters of the second base model. The base
model trains with dropout of 0.1 and leaves a layer out at 0.05, the larger ones do neither. A published batch holds as much
sound as fits; here it is a number of recordings, as many as that is of the longest.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from weft.core.errors import unknown_name
from weft.data.audio import WaveformTransform
from weft.data.datasets.recordings import Recordings
from weft.data.desk.sounds import DeskSounds
from weft.data.processor import Processor
from weft.encoders.hubert import Hubert
from weft.objectives.masked_prediction import MaskedPrediction
from weft.recipes.shrinking import shrunk
from weft.systems.media_encoder import MediaEncoder
from weft.training.stage import Optimizer, Recipe, Schedule, Stage
from weft.training.targets import ClusterTargets

SIZES = ("base", "large", "x-large")
CLIP_SAMPLES = 250_000  # the longest recording; what is longer is cut
CLIP_SECONDS = CLIP_SAMPLES / 16_000


class _Published(NamedTuple):
    """What the sizes differ in; a GPU takes so many samples of sound a step."""

    embedding_width: int
    num_gpus: int
    samples_per_gpu: int
    learning_rate: float
    clip_norm: float | None
    convolution_gradient: float
    standardise: bool


_TABLE = {
    "base": _Published(256, 32, 1_400_000, 5e-4, 10.0, 0.1, standardise=False),
    "large": _Published(768, 128, 900_000, 1.5e-3, 1.0, 1.0, standardise=True),
    "x-large": _Published(1024, 256, 360_000, 3e-3, 1.0, 1.0, standardise=True),  # unverified, all of it
}


def hubert(size: str = "base") -> Recipe:
    """HuBERT at a published size, the rounds before it included."""
    if size not in SIZES:
        raise unknown_name("size of hubert", size, SIZES)
    # unverified: the steps of the first round, the share that is clustered, the layer that large models learn from
    first = _round("base", "first", "clusters of MFCC", 100, 250_000, ClusterTargets())
    second = _round("base", "second", "clusters of layer 6", 500, 400_000, ClusterTargets(stage="first", layer=6, share=0.1))
    stages = [first, replace(second, new=("*",))]
    if size != "base":
        targets = ClusterTargets(stage="second", layer=9, share=0.1)
        third = _round(size, "third", "clusters of layer 9 of the second round", 500, 400_000, targets)
        stages.append(replace(third, new=("*",), data=Recordings.Config(folder="Libri-light")))
    return Recipe(
        name="hubert",
        size=size,
        paper="2106.07447",
        about="an encoder of speech by predicting the clusters of hidden frames",
        stages=tuple(stages),
    )


def tiny() -> Recipe:
    """HuBERT at CPU size, both rounds of the base model on a few of the desk's sounds."""
    seconds = 0.8
    encoder = replace(Hubert.Config.tiny(), clip_samples=round(seconds * 16_000), convolution_width=32)
    system = MediaEncoder.Config(encoder=encoder, num_clusters=6, embedding_width=16, convolution_gradient=0.1)
    systems = {"first": system, "second": replace(system, num_clusters=8)}
    data = dict.fromkeys(systems, DeskSounds.Config(seconds=seconds, epoch=32))
    small = shrunk(hubert("base"), systems, data, steps=40, image_size=64)

    def shorter(stage: Stage) -> Stage:
        assert stage.targets is not None
        heard = WaveformTransform(clip_seconds=seconds)
        return replace(
            stage,
            processor=replace(stage.processor, transforms={"audio": heard}),
            targets=replace(stage.targets, layer=1, share=1.0, num_starts=2),
            batch_size=8,
            optimizer=replace(stage.optimizer, learning_rate=4e-3),
        )

    return replace(small, stages=tuple(shorter(stage) for stage in small.stages))


def _round(size: str, name: str, title: str, num_clusters: int, steps: int, targets: ClusterTargets) -> Stage:
    published = _TABLE[size]
    encoder = replace(Hubert.Config.sizes()[size], clip_samples=CLIP_SAMPLES)
    heard = WaveformTransform(clip_seconds=CLIP_SECONDS, standardise=published.standardise)
    return Stage(
        name=name,
        title=f"hidden frames, {title}",
        system=MediaEncoder.Config(
            encoder=encoder,
            num_clusters=num_clusters,
            embedding_width=published.embedding_width,
            convolution_gradient=published.convolution_gradient,
        ),
        train=("*",),
        processor=Processor.Config(template="clip_text", transforms={"audio": heard}),  # of a text that nobody reads
        data=Recordings.Config(folder="LibriSpeech"),
        targets=targets,
        objective=MaskedPrediction.Config(),
        batch_size=published.num_gpus * (published.samples_per_gpu // CLIP_SAMPLES),
        micro_batch_size=published.samples_per_gpu // CLIP_SAMPLES,
        steps=steps,
        optimizer=Optimizer(
            learning_rate=published.learning_rate,
            betas=(0.9, 0.98),
            epsilon=1e-6,
            weight_decay=0.01,
            clip_norm=published.clip_norm,
        ),
        schedule=Schedule(decay="linear", warmup=32_000),
    )
