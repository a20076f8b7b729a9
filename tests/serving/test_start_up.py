"""`import weft` and `weft --help` touch nothing heavy; a process ends with the right code."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

import weft

HEAVY = ("torch", "transformers", "numpy", "PIL", "tokenizers", "safetensors", "sklearn", "matplotlib", "rich.progress")
COMMANDS = ("demo", "list", "show", "train", "eval", "chat", "convert", "data")


def loaded_by(code: str) -> set[str]:
    """The heavy modules that a fresh process holds after running `code`."""
    code += f"\nimport sys\nprint('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return set(eval(found.rpartition("LOADED ")[2]))


def test_import_weft_is_light():
    assert loaded_by("import weft") == set()


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS)], ids=" ".join)
def test_help_is_light(arguments):
    assert loaded_by(f"from weft.serving.cli import run\nassert run({arguments!r}) == 0") == set()


def test_every_lazy_name_is_there():
    for name in weft.__all__:
        assert getattr(weft, name) is not None
    assert set(weft.__all__) <= set(dir(weft))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        weft.nonsense  # noqa: B018


def start(*arguments: str) -> subprocess.Popen[str]:
    hear = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a background job is deaf
    code = f"{hear}; import sys; from weft.serving.cli import main; main()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def test_the_process_says_one_line_and_exits_with_2():
    process = start("show", "lava")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert re.fullmatch(r"weft: unknown recipe or part 'lava'; did you mean 'llava'( or '[\w.-]+')*\?", err.strip())


def test_ctrl_c_keeps_the_work_and_exits_with_130(tmp_path):
    folder = tmp_path / "run"
    process = start("train", "llava", "--tiny", "-o", str(folder), "--set", "stages.align.steps=100000", "--no-tensorboard")
    metrics = folder / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    lines = err.strip().splitlines()
    assert len(lines) == 1 and "--resume" in lines[0]
    kept = [path.name for path in (folder / "checkpoints").iterdir()]
    steps = metrics.read_text().count("\n")
    assert kept == [f"align-{steps}"]
    assert not (folder / "model").exists()


def test_ctrl_c_while_a_model_talks_ends_with_130():
    """At the prompt, where Python waits for a line; a suite that runs in the background hands down deafness to Ctrl-C."""
    code = (
        "import os, signal, sys; from weft.serving import cli; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "cli.app.command('wait')(lambda: os.kill(os.getpid(), signal.SIGINT)); sys.exit(cli.run(['wait']))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert process.returncode == 130
    assert process.stderr.strip() == "weft: interrupted"


def test_a_reader_that_leaves_early_is_no_error():
    process = start("list", "recipes")
    process.stdout.close()
    err = process.stderr.read()
    process.wait(timeout=60)
    assert "Traceback" not in err
