"""What a step on a CPU frees is there for the next."""

import subprocess
import sys

import pytest
import torch

from weft.training.allocator import keep_freed_memory

STEPS = """
import resource, statistics, sys, torch
from weft.training.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory(torch.device("cpu"))
def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    activations = [torch.ones(10 << 20) for _ in range(2)]  # of 40 MB, more than glibc ever learns to keep by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
pages = [step() for _ in range(31)]
print(round(statistics.median(pages[20:])))  # blocks have found their places on the heap after two to seven steps
"""


def pages_met_by_a_step(how):
    return int(subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not keep_freed_memory(torch.device("cpu")), reason="no glibc on this system")
def test_steps_meet_no_new_pages_once_their_blocks_have_found_their_places():
    assert pages_met_by_a_step("kept") < 10
    assert pages_met_by_a_step("given back") > 30  # 20,480 small pages, or 40 huge ones


def test_an_accelerator_has_an_allocator_of_its_own():
    assert not keep_freed_memory(torch.device("meta"))
