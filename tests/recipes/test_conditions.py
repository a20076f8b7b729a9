"""Figures say what they were measured with: what speed depends on, and the commit where the code is a checkout."""

import re
import subprocess
from dataclasses import replace

import pytest
import torch

from weft import __version__
from weft.recipes import conditions
from weft.recipes.conditions import Conditions, hardware

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("model name\t: Fast 9000\nflags\t\t: fpu avx512f avx512_bf16 amx_bf16\n", "bf16 by AMX and AVX512-BF16"),
        ("model name\t: Fast 9000\nflags\t\t: fpu avx512f avx512_bf16\n", "bf16 by AVX512-BF16"),
        ("model name\t: Fast 9000\nflags\t\t: fpu avx2\n", "no bf16 instructions"),
        ("Features\t: fp asimd bf16 i8mm\n", "bf16 by Arm BF16"),
        (None, "bf16 instructions unknown"),
    ],
)
def test_the_hardware_says_whether_the_processor_multiplies_in_bf16(tmp_path, told, said):
    cpuinfo = tmp_path / "cpuinfo"
    if told is not None:
        cpuinfo.write_text(told * 2)  # Linux writes one block a core
    line = hardware(CPU, cpuinfo)
    parts = line.split(", ")
    assert said in parts
    assert ("Fast 9000" in parts) == ("model name" in (told or ""))
    assert f"torch {torch.__version__}" in parts
    assert any(part in parts for part in (f"{torch.get_num_threads()} threads", "1 thread"))


def test_the_commit_is_that_of_the_code_and_of_nothing_around_it(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=t", "-c", "user.email=t@t", *words], check=True)

    def told(place):
        monkeypatch.setattr(conditions, "__file__", str(place / "conditions.py"))
        return conditions.commit()

    code, installed = (tmp_path / place / "weft" / "recipes" for place in ("src", ".venv/site-packages"))
    for place in (code, installed):
        place.mkdir(parents=True)
        (place / "conditions.py").touch()

    try:
        git("init", "-q")
    except OSError:
        pytest.skip("no git here")
    assert told(code) == "", "no commit yet"
    git("add", "src")
    git("commit", "-q", "-m", "one")
    head = told(code)
    assert re.fullmatch("[0-9a-f]{7,}", head)
    (tmp_path / "notes").touch()
    assert told(code) == head, "only the code counts"
    (code.parent / "core.py").touch()
    assert told(code) == f"{head} with changes"
    assert told(installed) == "", "installed inside another project's checkout"


def test_conditions_are_told_in_a_line_and_equal_on_another_day():
    here = Conditions.here(CPU)
    assert str(replace(here, commit="abc1234")).startswith(f"weft {__version__} (abc1234), ")
    assert str(replace(here, commit="")) == f"weft {__version__}, {hardware(CPU)}"
    assert replace(here, date="2020-01-01") == here != replace(here, commit="abc1234!")
