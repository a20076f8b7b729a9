"""How long `import weft` and `weft --help` take: fresh processes, best and median of several runs.

python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

BOUNDS_SECONDS = {"import weft": 0.3, "weft --help": 0.5, "weft show --help": 0.5}
RUNS = 15


def seconds(arguments: list[str]) -> float:
    """Wall time of one fresh process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> int:
    """Measure and print; exit code 1 where a median is over its bound."""
    command = "import sys; from weft.serving.cli import run; sys.exit(run({!r}))"
    programs = {
        "import weft": ["-c", "import weft"],
        "weft --help": ["-c", command.format(["--help"])],
        "weft show --help": ["-c", command.format(["show", "--help"])],
    }
    table = Table("program", "best", "median", "bound")
    slow = False
    for name, arguments in programs.items():
        seconds(arguments)  # fills the file cache
        times = [seconds(arguments) for _ in range(RUNS)]
        median = statistics.median(times)
        slow |= median > BOUNDS_SECONDS[name]
        table.add_row(name, f"{min(times):.3f} s", f"{median:.3f} s", f"{BOUNDS_SECONDS[name]} s")
    Console().print(table)
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
