"""One thread a test process: the processes of `pytest -n` share the cores, and sums come out in one order."""

import os

import pytest

# Before torch is imported; the programs that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def one_thread():
    """One thread whatever the environment says, where bits are compared with a process that has one."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
