"""A row in a process of its own: what it tells and returns, what it raises, Ctrl-C, and memory that is its own."""

import os
import signal
import time
from functools import partial
from io import StringIO

import pytest
import torch
from rich.console import Console

from weft.core.errors import MissingLibrary, RunError
from weft.recipes.comparison import compare
from weft.recipes.comparison_plan import PartsPlan
from weft.recipes.comparison_process import in_own_process
from weft.recipes.comparison_progress import ComparisonProgress
from weft.recipes.comparison_row import forget_peak_memory, peak_memory_bytes
from weft.training.interrupts import Interrupts, TrainingInterrupted

CPU = torch.device("cpu")


class Asked:
    """Keeps what it is told, and strikes at the second word."""

    def __init__(self, strikes=0):
        self.told, self.strikes = [], strikes

    def asked(self, run, done, total):
        self.told.append((run, done, total))
        if done == 2:
            for _ in range(self.strikes):
                os.kill(os.getpid(), signal.SIGINT)


def counting(process, progress):
    for done in (1, 2, 3):
        progress.asked("model", done, 3)
    return os.getpid() != process


def training(progress):
    with Interrupts() as interrupts:
        for done in range(1, 100):
            progress.asked("model", done, 100)
            if interrupts.requested:
                raise TrainingInterrupted(f"stopped after {done}")


def evaluating(progress):
    for done in range(1, 100):
        progress.asked("model", done, 100)


def hanging(progress):
    with Interrupts():
        progress.asked("model", 2, 100)
        time.sleep(60)


def failing(error, progress):
    raise error


def ending(progress):
    os._exit(3)


def peak(num_bytes, progress):
    forget_peak_memory(CPU)
    torch.ones(num_bytes // 4)
    return peak_memory_bytes(CPU)


def test_it_tells_and_returns_what_the_work_does():
    progress = Asked()
    assert in_own_process(partial(counting, os.getpid()), progress)
    assert progress.told == [("model", 1, 3), ("model", 2, 3), ("model", 3, 3)]


def test_ctrl_c_finishes_the_step_and_a_second_one_leaves_at_once():
    before = signal.getsignal(signal.SIGINT)  # ignored, where a shell started the suite in the background
    progress = Asked(strikes=1)
    with pytest.raises(TrainingInterrupted, match="stopped after 2"):
        in_own_process(training, progress)
    assert progress.told[-1][1] == 2, "a Ctrl-C at a step arrives before the next"
    with pytest.raises(KeyboardInterrupt):
        in_own_process(evaluating, Asked(strikes=1))
    began = time.monotonic()
    with pytest.raises(TrainingInterrupted, match="at once"):
        in_own_process(hanging, TwiceApart())
    assert time.monotonic() - began < 50
    assert signal.getsignal(signal.SIGINT) is before


class TwiceApart(Asked):
    """Strikes, and strikes again when the first has arrived."""

    def asked(self, run, done, total):
        os.kill(os.getpid(), signal.SIGINT)
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, 0.5)


@pytest.mark.parametrize("error", [RunError("no place"), OSError(28, "No space left", "there")])
def test_it_raises_what_the_work_raises(error):
    with pytest.raises(type(error), match=r"no place|No space left") as raised:
        in_own_process(partial(failing, error), Asked())
    assert raised.value.args == error.args
    assert "in failing" in raised.value.__notes__[0], "the traceback comes with it"


def lacking(progress):
    raise MissingLibrary("this part", "nothing", "more")


def holding(progress):
    raise ValueError("what it holds", lambda: None)


def test_an_error_that_cannot_be_sent_keeps_its_words():
    with pytest.raises(RunError, match=r"this part is run by the library nothing"):
        in_own_process(lacking, Asked())
    with pytest.raises(RunError, match=r"what it holds") as raised:
        in_own_process(holding, Asked())
    assert "in holding" in raised.value.__notes__[0], "the traceback comes with it"


def test_a_process_that_dies_is_told():
    with pytest.raises(RunError, match=r"ended by itself \(3\)"):
        in_own_process(ending, Asked())


@pytest.mark.skipif(peak_memory_bytes(CPU) is None, reason="the system does not tell a process's peak")
def test_its_memory_is_its_own():
    held = torch.ones(2**27)  # half a GiB of the process that asks
    here = peak(2**20, Asked())
    small, large = (in_own_process(partial(peak, size), Asked()) for size in (2**20, 2**20 + 2**29))
    assert here - small > 0.4 * held.nbytes
    assert large - small == pytest.approx(2**29, rel=0.1), "allocators round, and imports vary"


def test_a_comparison_trains_its_rows_so(tmp_path):
    plan = PartsPlan("projectors", steps=1, seeds=(0,), only=("linear",), questions_per_type=2)
    progress = ComparisonProgress(Console(file=StringIO()), plan.pieces, plan.num_questions)
    (row,) = compare(plan, tmp_path, progress, own_processes=True).rows
    assert row.candidate == "linear" and "linear, seed 0" in progress.console.file.getvalue()
