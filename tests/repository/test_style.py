"""Rules of the house that a reader would otherwise have to watch for."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = sorted((ROOT / "src" / "weft").rglob("*.py"))


def tracked(*endings: str) -> list[Path]:
    """The files of the repository by ending, from git where there is a checkout, else from the folders."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        files = [ROOT / name for name in listed.stdout.splitlines()]
    else:
        places = [ROOT / name for name in ("src", "tests", "docs", "examples", "benchmarks")]
        files = [*ROOT.glob("*"), *(path for place in places for path in place.rglob("*"))]
    return [path for path in files if path.suffix in endings and path.is_file()]


def calls(name: str) -> list[str]:
    """Where the library calls a function of this name, bare or as an attribute."""
    found = []
    for path in SOURCE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}")
    return found


def test_the_library_prints_through_a_console():
    bare = [where for where in calls("print") if re.search(r":\d+ print\(", where)]
    assert bare == []


@pytest.mark.parametrize("method", ["load_state_dict", "load_model"])
def test_nothing_is_loaded_with_strict_off(method):
    assert [where for where in calls(method) if re.search(r"strict\s*=\s*(?!True)", where)] == []


def test_torch_files_are_read_as_weights_only():
    loads = [where for where in calls("load") if "torch.load(" in where]
    assert [where for where in loads if "weights_only=True" not in where] == []


def test_nothing_reads_or_writes_pickles():
    banned = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    found = []
    for path in SOURCE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"{path.relative_to(ROOT)}:{node.lineno}" for name in names if name.split(".")[0] in banned]
    assert found == []


def test_nothing_is_left_for_later():
    marks = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b|raise NotImplementedError")
    found = [p.relative_to(ROOT) for p in tracked(".py", ".md", ".toml") if marks.search(p.read_text(encoding="utf-8"))]
    assert [p for p in found if p != Path("tests/repository/test_style.py")] == []


def test_files_name_no_local_path():
    local = re.compile(r"(?<![\w.])/(home|Users|root|work|mnt|private)/\w|[A-Z]:\\\\Users")
    texts = tracked(".md", ".py", ".toml", ".txt", ".json", ".html", ".sh")
    assert len(texts) > 50
    found = [p.relative_to(ROOT) for p in texts if local.search(p.read_text(encoding="utf-8"))]
    assert [p for p in found if p != Path("tests/repository/test_style.py")] == []


def test_every_public_module_says_what_it_is_for():
    silent = []
    for path in SOURCE:
        text = path.read_text(encoding="utf-8")
        if text.strip() and ast.get_docstring(ast.parse(text)) is None:
            silent.append(str(path.relative_to(ROOT)))
    assert silent == []


def test_names_say_what_a_file_holds():
    vague = re.compile(r"(^|_)(utils?|helpers?|misc|common|manager|v2)($|_)")
    assert [str(p.relative_to(ROOT)) for p in SOURCE if vague.search(p.stem)] == []


def test_test_files_have_names_of_their_own():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names)), "pytest imports test files by name"
