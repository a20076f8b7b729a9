"""Each example runs at a few steps and reaches what it says; the table lists them all."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.fixture(autouse=True)
def beside_each_other(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def main_of(name):
    return importlib.import_module(name).main


def test_compose_a_model(capsys):
    main_of("compose_a_model")(8)
    said = capsys.readouterr().out
    assert "16 positions per picture" in said  # 8 x 8 patches, two by two
    assert "8 new ones" in said
    assert 5.0 < float(re.search(r"loss ([\d.]+)", said)[1]) < 8.0  # log of 506 ids is 6.2


def test_train_on_your_data(tmp_path, capsys):
    assert main_of("train_on_your_data")(80, tmp_path) == 4
    assert "red: It is red." in capsys.readouterr().out


def test_score_choices(tmp_path, capsys):
    assert main_of("score_choices")(80, tmp_path) == 4  # each by over a nat; 40 steps leave one wrong
    assert capsys.readouterr().out.count("*") == 4


def test_zero_shot(tmp_path):
    right, chance = main_of("zero_shot")(120, tmp_path)
    assert right > chance + 0.05  # 649 pictures: three standard errors; 0.29 against 0.20 were measured


def test_published_checkpoint(tmp_path, capsys):
    pytest.importorskip("transformers")
    main_of("published_checkpoint")(4, tmp_path)
    said = capsys.readouterr().out
    assert "80 of 80 tensors came back bit for bit; 0 complaints" in said


def test_the_table_lists_every_example_and_every_example_has_a_test():
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \[`(\w+)\.py`\]\(\1\.py\) \|", table, re.MULTILINE) == SCRIPTS
    assert {f"test_{name}" for name in SCRIPTS} <= set(globals())


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_example_is_short(name):
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 80


def test_an_example_starts_from_the_command_line():
    command = [sys.executable, str(EXAMPLES / "score_choices.py"), "--help"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "--steps" in told and "Rank given answers" in told
