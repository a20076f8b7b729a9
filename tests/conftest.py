"""One thread a test process: the processes of `pytest -n` share the cores, and sums come out in one order."""

import os

# Before torch is imported; the programs that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
