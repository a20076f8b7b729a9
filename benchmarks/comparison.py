"""What the comparisons with other libraries have in common: clocks, ratios with their bound, and the conditions of a run."""

from __future__ import annotations

import datetime
import math
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
FLOOR = 0.97  # lower end of the interval below which a ratio in Weft's favour counts as a loss
RESAMPLES = 4000

Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


def ratio_of_medians(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """The ratio, and the lower end of its 95% bootstrap interval."""
    draw = random.Random(0)
    ratios = sorted(
        statistics.median(draw.choices(ours, k=len(ours))) / statistics.median(draw.choices(theirs, k=len(theirs)))
        for _ in range(RESAMPLES)
    )
    return statistics.median(ours) / statistics.median(theirs), ratios[int(0.025 * RESAMPLES)]


def ratio_of_pairs(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """The median ratio of runs that were made beside each other, and the lower end of its 95% bootstrap interval.

    What changes a machine's speed for longer than two runs falls out of it.
    """
    draw = random.Random(0)
    pairs = [one / other for one, other in zip(ours, theirs, strict=True)]
    medians = sorted(statistics.median(draw.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    return statistics.median(pairs), medians[int(0.025 * RESAMPLES)]


def ratio_of_processes(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The ratio over pairs of processes, with one list of runs a pair, and the lower end of its 95% interval.

    Runs of one process share where its memory came to lie, so each pair counts once: with the median of its runs' ratios. The
    ratio is the geometric mean over the pairs, the interval Student's. ValueError for fewer than two pairs.
    """
    from scipy.special import stdtrit  # it comes with the extra "demo"

    if len(ours) < 2:
        raise ValueError(f"an interval over pairs of processes takes two or more, got {len(ours)}")
    logarithms = [
        math.log(statistics.median(one / other for one, other in zip(*runs, strict=True)))
        for runs in zip(ours, theirs, strict=True)
    ]
    mean, error = statistics.mean(logarithms), statistics.stdev(logarithms) / math.sqrt(len(logarithms))
    return math.exp(mean), math.exp(mean - stdtrit(len(logarithms) - 1, 0.975) * error)


def conditions(program: str, hardware: str) -> dict[str, Any]:
    """When, where and on what code a run is made; ask before the run, it is this code that is measured."""
    import transformers

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False)
    changed = subprocess.run(
        ["git", "status", "--porcelain", "src"], cwd=HERE.parent, capture_output=True, text=True, check=False
    )
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit.stdout.strip() + (" with changes in src" if changed.stdout.strip() else ""),
        "hardware": hardware,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "command": " ".join(["python", f"benchmarks/{program}", *sys.argv[1:]]),
    }


def processor(threads: int, clock: str) -> str:
    """The processor with the threads and the clock of a run."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name}, {threads} thread(s), {clock} time"
