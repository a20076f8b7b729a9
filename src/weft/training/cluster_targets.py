"""Targets that a stage finds before its first step: to which cluster each frame of a recording belongs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from weft.core.conversation import Conversation, Media
from weft.core.errors import ConfigError, DataError, UnreadableMedium
from weft.core.interfaces import System
from weft.data.acoustic_targets import Clusters, read_targets, write_targets
from weft.data.collate import collate
from weft.data.dataset import Dataset
from weft.data.mfcc import mfcc_frames
from weft.data.processor import Processor
from weft.data.tokenizers import Tokenizer
from weft.systems.media_encoder import MediaEncoder
from weft.training.atomic import atomic_folder
from weft.training.sample_reader import SampleReader
from weft.training.stage import Stage

FrameFeatures = Callable[[Conversation], Tensor]
"""What is clustered of a conversation's one recording, a row a frame: [L, F]."""

_CLUSTERS, _LABELS = "clusters.safetensors", "labels.safetensors"


def frame_features(
    stage: Stage,
    source: Stage | None,
    fill: Callable[[System], None],
    tokenizer: Tokenizer,
    device: torch.device | str = "cpu",
) -> FrameFeatures:
    """The features that a stage's targets are clusters of: of the stage `source`, whose weights `fill` reads, or MFCC.

    Raises: ConfigError for stages whose systems are no MediaEncoder.
    """
    targets, stream = stage.targets, system_of(stage).stream
    assert targets is not None
    if source is None:
        heard = stage.processor.build(tokenizer, stage.system)
        return lambda conversation: mfcc_frames(torch.from_numpy(_waveform(heard, conversation, stream)))
    saved = system_of(source)
    with torch.random.fork_rng(devices=[]):  # its fresh weights are overwritten and leave the run's draws as they were
        system = _up_to(saved, targets.layer).build()
    fill(system)
    system.to(device).eval().requires_grad_(False)
    processor = source.processor.build(tokenizer, saved)

    @torch.no_grad()
    def features(conversation: Conversation) -> Tensor:
        found = system.encode(collate([processor.encode(conversation)]).to(torch.device(device)))[stream]
        values: Tensor = found.values[0]
        return values if found.valid is None else values[found.valid[0]]

    return features


def check_targets(stage: Stage, earlier: Sequence[Stage]) -> None:
    """Raises: ConfigError for targets that cannot be found: no such earlier stage, no such layer, no MediaEncoder."""
    system_of(stage)
    assert stage.targets is not None
    if (name := stage.targets.stage) is None:
        return
    source = next((other for other in earlier if other.name == name), None)
    if source is None:
        names = [other.name for other in earlier]
        raise ConfigError(
            f"stage {stage.name!r} takes its targets from {name!r}, which is no earlier stage; earlier are {names}"
        )
    _up_to(system_of(source), stage.targets.layer)


def _up_to(system: MediaEncoder.Config, layer: int) -> MediaEncoder.Config:
    """The system with the features after `layer` blocks."""
    return replace(system, encoder=replace(system.encoder, feature_layer=layer))  # type: ignore[call-arg]


def find_clusters(stage: Stage, recordings: SampleReader) -> Clusters:
    """The clusters of a stage's data, read as frame features. Raises: DataError where it has fewer frames than clusters."""
    assert stage.targets is not None
    targets, total = stage.targets, len(recordings.dataset)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(targets.seed)).tolist()
    chosen = sorted(order[: max(1, round(targets.share * total))])
    frames = (found for i in chosen if (found := recordings.find(i)) is not None)
    return Clusters.fit(frames, system_of(stage).num_clusters, targets.seed, targets.num_starts)


def write_cluster_targets(folder: Path, stage: Stage, recordings: SampleReader) -> None:
    """Find the clusters of a stage's data and label all of it that is read; the folder appears whole or not at all."""
    clusters = find_clusters(stage, recordings)
    found = ((i, recordings.find(i)) for i in range(len(recordings.dataset)))
    labels = {str(i): clusters.labels(frames) for i, frames in found if frames is not None}
    with atomic_folder(folder) as partial:
        clusters.save(partial / _CLUSTERS)
        write_targets(partial / _LABELS, labels)


def read_clusters(folder: Path) -> Clusters:
    """The clusters that `write_cluster_targets` found."""
    return Clusters.load(folder / _CLUSTERS)


class Labelled(Dataset):
    """A data set whose recordings know their targets; of one without end, the first epoch.

    Raises: DataError for a conversation that has not one recording, UnreadableMedium for a recording that was left out when
    targets were found.
    """

    def __init__(self, dataset: Dataset, stream: str, label: Callable[[int, Conversation], Tensor]) -> None:
        self.dataset, self.stream, self.label = dataset, stream, label

    @staticmethod
    def from_folder(dataset: Dataset, stage: Stage, folder: Path) -> Labelled:
        """With the labels that `write_cluster_targets` wrote."""
        labels = read_targets(folder / _LABELS)

        def label(index: int, conversation: Conversation) -> Tensor:
            if str(index) not in labels:
                raise UnreadableMedium(f"sample {conversation.name}: it could not be read when {folder} was written")
            return torch.from_numpy(labels[str(index)])

        return Labelled(dataset, system_of(stage).stream, label)

    def __len__(self) -> int:
        return len(self.dataset)

    def remarks(self) -> Sequence[str]:
        return self.dataset.remarks()

    def __getitem__(self, index: int) -> Conversation:
        conversation = self.dataset[index]
        _check_recording(conversation, self.stream)
        label = self.label(index, conversation).cpu().numpy()
        messages = tuple(
            replace(m, parts=tuple(replace(p, targets=label) if isinstance(p, Media) else p for p in m.parts))
            for m in conversation.messages
        )
        return replace(conversation, messages=messages)


def system_of(stage: Stage) -> MediaEncoder.Config:
    """The system that cluster targets are for. Raises: ConfigError for another kind."""
    if not isinstance(stage.system, MediaEncoder.Config):
        raise ConfigError(f"stage {stage.name!r}: cluster targets are for a MediaEncoder, this is a {stage.system.part_name}")
    return stage.system


def _check_recording(conversation: Conversation, stream: str) -> None:
    streams = [medium.stream for medium in conversation.media()]
    if streams != [stream]:
        raise DataError(f"sample {conversation.name}: cluster targets are for one medium of stream {stream!r}, got {streams}")


def _waveform(processor: Processor, conversation: Conversation, stream: str) -> np.ndarray:
    """The samples that the encoder hears. Shapes: [S]."""
    _check_recording(conversation, stream)
    (medium,) = processor.encode(conversation).media[stream]
    samples: np.ndarray = medium.units[0]
    return samples
