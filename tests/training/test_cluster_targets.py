"""Targets of a stage: clusters of MFCC or of an earlier stage's features, found once, kept in the run folder."""

from dataclasses import replace

import pytest
import torch
from tiny_training import losses, tokenizer

from weft.core.conversation import Conversation, Media, user
from weft.core.errors import ConfigError, DataError
from weft.data.acoustic_targets import read_targets
from weft.data.desk.sounds import DeskSounds
from weft.data.mfcc import mfcc_frames
from weft.recipes import hubert
from weft.recipes.catalogue import recipe
from weft.training.cluster_targets import Labelled, find_clusters, frame_features, read_clusters
from weft.training.interrupts import TrainingInterrupted
from weft.training.sample_reader import SampleReader
from weft.training.trainer import Trainer, check_recipe


@pytest.fixture(scope="module")
def small():
    """Both rounds, two steps each, on eight sounds; the second round is told what held-out sounds it is measured on."""
    data = DeskSounds.Config(epoch=8)
    stages = tuple(replace(s, data=data, steps=2, batch_size=4) for s in hubert.tiny().stages)
    held_out = DeskSounds.Config(split="validation", epoch=8)
    return replace(hubert.tiny(), stages=(stages[0], replace(stages[1], validation=held_out)))


@pytest.fixture(scope="module")
def run(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hubert") / "run"
    Trainer(small, folder, tokenizer=tokenizer(), validation_samples=4).fit()
    return folder


def test_the_first_round_says_the_nearest_cluster_of_the_mfcc(small, run):
    place = run / "targets" / "first"
    clusters, labels = read_clusters(place), read_targets(place / "labels.safetensors")
    assert clusters.centroids.shape == (6, 39) and sorted(labels) == sorted(map(str, range(8)))
    (medium,) = small.stages[0].data.build()[3].media()
    frames = mfcc_frames(torch.from_numpy(medium.source.samples))
    assert labels["3"].tolist() == torch.cdist(frames, clusters.centroids).argmin(1).tolist()


def test_the_second_round_says_the_clusters_of_a_layer_of_the_first_model(small, run):
    from weft.recipes.loading import load_system

    first = load_system(run / "stages" / "first")
    conversation = small.stages[1].data.build()[5]
    (medium,) = conversation.media()
    with torch.no_grad():
        hidden = first.system.encoder.states(torch.from_numpy(medium.source.samples)[None], num_blocks=1).hidden[0]
    fill = lambda system: system.load_state_dict(first.system.state_dict())  # noqa: E731
    features = frame_features(small.stages[1], small.stages[0], fill, tokenizer())(conversation)
    torch.testing.assert_close(features, hidden)
    clusters = read_clusters(run / "targets" / "second")
    labels = read_targets(run / "targets" / "second" / "labels.safetensors")
    assert clusters.centroids.shape == (8, 32)
    assert labels["5"].tolist() == torch.cdist(hidden, clusters.centroids).argmin(1).tolist()


def test_a_resumed_run_goes_on_with_the_targets_that_it_found(small, run, tmp_path):
    class Stop:
        """Interrupts the second round after its first step."""

        def on_stage_start(self, start): ...

        def on_stage_end(self, end): ...

        def on_step(self, report):
            if report.stage == "second" and report.kind == "train" and report.step == 1:
                raise TrainingInterrupted("stopped")

    folder = tmp_path / "run"
    options = {"tokenizer": tokenizer(), "validation_samples": 4, "checkpoint_every": 1}
    with pytest.raises(TrainingInterrupted):
        Trainer(small, folder, callbacks=(Stop(),), **options).fit()
    written = (folder / "targets" / "second" / "labels.safetensors").stat().st_mtime_ns
    Trainer(small, folder, **options).fit(resume=True)
    assert (folder / "targets" / "second" / "labels.safetensors").stat().st_mtime_ns == written
    assert losses(folder) == losses(run)


def test_a_share_of_the_recordings_is_clustered(small):
    stage = replace(small.stages[0], targets=replace(small.stages[0].targets, share=0.5))
    heard = []

    def features(conversation):
        heard.append(conversation.id)
        return torch.randn(9, 2)

    find_clusters(stage, SampleReader(stage.data.build(), features))
    assert len(heard) == len(set(heard)) == 4


def test_what_cannot_be_found_says_so(small):
    first, second = small.stages
    with pytest.raises(
        ConfigError, match="takes its targets from 'third', which is no earlier stage; earlier are \\['first'\\]"
    ):
        check_recipe(replace(small, stages=(first, replace(second, targets=replace(second.targets, stage="third")))))
    with pytest.raises(ConfigError, match="2 layers have no hidden state 6"):
        check_recipe(replace(small, stages=(first, replace(second, targets=replace(second.targets, layer=6)))))
    with pytest.raises(ConfigError, match="cluster targets are for a MediaEncoder"):
        seeing = recipe("clip", "b-32")
        check_recipe(replace(seeing, stages=(replace(seeing.stages[0], targets=first.targets),)))
    silent = Labelled([Conversation((user("no sound"),), id="7")], "audio", lambda *_: torch.zeros(1))
    with pytest.raises(DataError, match="sample 7: cluster targets are for one medium of stream 'audio', got \\[\\]"):
        silent[0]
    two = Conversation((user(Media("a.wav", "audio"), Media("b.wav", "audio")),))
    with pytest.raises(DataError, match="one medium of stream 'audio'"):
        Labelled([two], "audio", lambda *_: torch.zeros(1))[0]
