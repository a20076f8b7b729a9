"""What a figure was measured with: the code, the machine and the day."""

from __future__ import annotations

import platform
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from weft import __version__

_BF16_FLAGS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "Arm BF16"}  # as Linux names them
_PLACE = "src/weft/recipes/"


@dataclass(frozen=True)
class Conditions:
    """The version, its commit as `commit` tells it, the hardware as `hardware` does, and the day.

    Conditions of different days are equal: a day changes no figure.
    """

    weft: str
    commit: str
    hardware: str
    date: str = field(compare=False)

    @classmethod
    def here(cls, device: torch.device) -> Conditions:
        """Those of this process; ask early, before the checkout changes beneath it."""
        return cls(__version__, commit(), hardware(device), time.strftime("%Y-%m-%d"))

    def __str__(self) -> str:
        return f"weft {self.weft}{f' ({self.commit})' if self.commit else ''}, {self.hardware}"


def hardware(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The GPU, or the processor with its threads, whether it multiplies in bf16, and the torch that computes on it."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    name, flags = platform.processor() or platform.machine(), None
    if cpuinfo.exists():
        told = dict(re.findall(r"^(model name|flags|Features)\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE))
        name = told.get("model name", name)
        flags = (told.get("flags") or told.get("Features") or "").split()
    threads, capability = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}, {capability}, {_bf16(flags)}, torch {torch.__version__}"


def _bf16(flags: Sequence[str] | None) -> str:
    """What a processor's flags say of bf16: speed in training depends on it more than on the clock."""
    if flags is None:
        return "bf16 instructions unknown"
    found = [title for flag, title in _BF16_FLAGS.items() if flag in flags]
    return f"bf16 by {' and '.join(found)}" if found else "no bf16 instructions"


def commit() -> str:
    """The commit of the code that runs, and whether it was changed since.

    Empty outside a checkout of it, such as an installation inside another project's.
    """
    try:
        place, head = _git("rev-parse", "--show-prefix", "--short", "HEAD").splitlines()
        if not place.endswith(_PLACE):
            return ""
        return f"{head} with changes" if _git("status", "--porcelain", "--", "..") else head
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(*words: str) -> str:
    """What git says of the folder that this file stands in. Raises: CalledProcessError outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
