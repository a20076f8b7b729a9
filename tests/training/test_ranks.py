"""Several processes train as one: the same losses, the same model, the same way back after a stop."""

import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import tiny_training
import torch
from tiny_training import STEPS, Squares, Strike, losses, recipe, tokenizer

from weft.core.errors import ConfigError, DataError, RunError
from weft.recipes.desk import desk
from weft.recipes.desk import tokenizer as desk_tokenizer
from weft.training.logging import read_metrics
from weft.training.model_folder import read_weights
from weft.training.ranks import Ranks
from weft.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")  # sums depend on how they are split


def weights(folder):
    return read_weights(folder / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run in one, two and three processes; bf16 would round what another order of sums changes."""
    place = tmp_path_factory.mktemp("runs")
    for processes in (1, 2, 3):
        made = recipe(precision="fp32", validation=Squares.Config(size=11))
        Trainer(made, place / str(processes), tokenizer=tokenizer(), processes=processes, validation_samples=11).fit()
    return place


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_are_one_up_to_the_order_of_sums(runs, processes):
    """Packed, accumulated, with text-only samples, AdamW and Muon; Muon's iteration doubles differences a few times."""
    alone, together = losses(runs / "1"), losses(runs / str(processes))
    assert [(stage, step) for stage, step, _ in together] == [(stage, step) for stage, step, _ in alone]
    assert [loss for *_, loss in together] == pytest.approx([loss for *_, loss in alone], rel=2e-4)
    one, several = weights(runs / "1"), weights(runs / str(processes))
    assert one.keys() == several.keys()
    for name, value in one.items():
        torch.testing.assert_close(several[name], value, rtol=0, atol=2e-3, msg=name)


def test_the_first_process_writes_for_all(runs):
    for kind, count in (("train", 2 * STEPS), ("validation", 2)):
        alone, together = (read_metrics(runs / name, kind) for name in ("1", "2"))
        assert len(together) == len(alone) == count
        assert [r["loss"] for r in together] == pytest.approx([r["loss"] for r in alone], rel=2e-4)
    assert sorted(p.name for p in (runs / "2").iterdir()) == sorted(p.name for p in (runs / "1").iterdir())


def test_late_interaction_meets_the_texts_of_all_processes(tmp_path):
    """The desk's first stage: groups of phrases, equal wordings on both sides counted once."""
    tower = desk().stage("tower")
    tower = replace(tower, batch_size=20, steps=3, precision="fp32")
    made = replace(desk(), stages=(tower,))
    for processes in (1, 2):
        Trainer(
            made, tmp_path / str(processes), tokenizer=desk_tokenizer(100), processes=processes, validation_samples=20
        ).fit()
    alone, together = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert [loss for *_, loss in together] == pytest.approx([loss for *_, loss in alone], rel=1e-4)
    (one,), (both,) = (read_metrics(tmp_path / name, "validation") for name in ("1", "2"))
    assert both["loss"] == pytest.approx(one["loss"], rel=1e-4)


@pytest.mark.parametrize("blow", ["SIGKILL", "SIGINT"])
def test_a_stopped_run_of_two_processes_goes_on_bit_for_bit(tmp_path, blow):
    straight, folder = tmp_path / "straight", tmp_path / "run"
    Trainer(recipe(), straight, tokenizer=tokenizer(), processes=2).fit()
    command = [sys.executable, tiny_training.__file__, str(folder), str(STEPS + 3), blow, "processes=2"]
    stopped = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert stopped.returncode == (-signal.SIGKILL if blow == "SIGKILL" else 130), stopped.stderr
    Trainer(recipe(), folder, tokenizer=tokenizer()).fit(resume=True)  # as many as it was started with
    assert losses(folder) == losses(straight)
    ours, theirs = weights(folder), weights(straight)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


class Missing(Squares):
    """A data set with a sample that cannot be read."""

    def __getitem__(self, index):
        if index == 3:
            raise DataError("sample squares:3: its picture is not there")
        return super().__getitem__(index)


def test_what_stops_another_process_is_told_and_nothing_hangs(tmp_path, monkeypatch):
    monkeypatch.setattr(Squares.Config, "build", lambda self: Missing(self))
    with pytest.raises((RunError, DataError), match="squares:3: its picture is not there"):  # whichever process met it
        Trainer(recipe(), tmp_path / "run", tokenizer=tokenizer(), processes=2).fit()


def test_a_process_that_dies_ends_the_run_with_one_error(tmp_path):
    def strike():
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)

    folder = tmp_path / "run"
    made = Trainer(recipe(), folder, tokenizer=tokenizer(), processes=2, checkpoint_every=2, callbacks=[Strike(3, strike)])
    with pytest.raises(RunError, match=r"ended \(exit codes -9\).*resume to go on"):
        made.fit()
    assert not multiprocessing.active_children()
    Trainer(recipe(), folder, tokenizer=tokenizer()).fit(resume=True)
    assert len(losses(folder)) == 2 * STEPS


def test_shares_are_neighbours_and_cover_everything_once():
    for count in (2, 7, 48):
        for size in (1, 2, 3):
            parts = [Ranks(rank, size).share(range(count)) for rank in range(size)]
            assert [i for part in parts for i in part] == list(range(count))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_more_processes_than_samples_a_step_are_refused():
    with pytest.raises(ConfigError, match="4 samples a step, too few for 5 processes"):
        Trainer(recipe(), "unused", tokenizer=tokenizer(), processes=5)
    with pytest.raises(ConfigError, match="1 process or more"):
        Trainer(recipe(), "unused", tokenizer=tokenizer(), processes=0)
