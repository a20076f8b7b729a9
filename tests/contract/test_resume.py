"""Kill a run anywhere: after resume the losses are those of the uninterrupted run, bit for bit on the CPU."""

import os
import signal
import subprocess
import sys

import pytest
import tiny_training
import torch
from tiny_training import STEPS, Strike, losses, recipe, tokenizer

from weft.training.interrupts import TrainingInterrupted
from weft.training.model_folder import read_weights
from weft.training.trainer import Trainer


class Crash(Exception):
    pass


def crash():
    raise Crash


def trainer(folder, **options):
    return Trainer(recipe(), folder, tokenizer=tokenizer(), **options)


pytestmark = pytest.mark.usefixtures("one_thread")  # sums depend on how they are split


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "straight"
    trainer(folder).fit()
    assert len(losses(folder)) == 2 * STEPS
    return folder


def assert_same_run(folder, straight):
    assert losses(folder) == losses(straight)
    ours, theirs = (read_weights(run / "model" / "model.safetensors") for run in (folder, straight))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("step", "checkpoint_every"),
    [
        pytest.param(5, 2, id="a step after a checkpoint"),
        pytest.param(3, 100, id="before the first checkpoint"),
        pytest.param(STEPS, 100, id="after the last step of a stage"),
        pytest.param(STEPS + 2, 100, id="in the second stage, resumed across the boundary"),
        pytest.param(STEPS + 5, 2, id="in the second stage, packed and accumulated, Muon and AdamW"),
    ],
)
def test_a_crashed_run_resumes_bit_for_bit(tmp_path, straight, step, checkpoint_every):
    folder = tmp_path / "run"
    with pytest.raises(Crash):
        trainer(folder, checkpoint_every=checkpoint_every, callbacks=[Strike(step, crash)]).fit()
    trainer(folder, checkpoint_every=checkpoint_every).fit(resume=True)
    assert_same_run(folder, straight)


def test_a_killed_process_resumes_bit_for_bit(tmp_path, straight):
    folder = tmp_path / "run"
    command = [sys.executable, tiny_training.__file__, str(folder), str(STEPS + 3), "SIGKILL"]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    trainer(folder).fit(resume=True)
    assert_same_run(folder, straight)


def test_an_interrupted_process_exits_with_130_and_resumes_bit_for_bit(tmp_path, straight):
    folder = tmp_path / "run"
    command = [sys.executable, tiny_training.__file__, str(folder), "3", "SIGINT"]
    stopped = subprocess.run(command, capture_output=True, text=True)
    assert stopped.returncode == 130, stopped.stderr
    assert (folder / "checkpoints" / "align-3").is_dir(), "Ctrl-C keeps the step that it lets finish"
    trainer(folder).fit(resume=True)
    assert_same_run(folder, straight)


def test_a_second_interrupt_leaves_at_once_and_nothing_half_written(tmp_path):
    folder = tmp_path / "run"

    def press_twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingInterrupted) as stopped:
        trainer(folder, checkpoint_every=2, callbacks=[Strike(3, press_twice)]).fit()
    assert stopped.value.code == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["align-2"]
    assert not list(folder.rglob(".partial-*"))
