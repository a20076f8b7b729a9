"""What the documents say is there, is there; their Python runs."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_files_exist(document):
    text = document.read_text(encoding="utf-8")
    named = re.findall(r"`((?:\w+/)+\w+\.(?:py|md|json))`", text)
    places = (ROOT, ROOT / "src" / "weft", document.parent)
    gone = [name for name in named if not any((place / name).exists() for place in places) and not name.startswith("demo/")]
    assert gone == []


def test_the_example_composes_another_model():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "replace(" in block)
    promised = int(re.search(r"# (\d+)", code)[1])
    names: dict[str, object] = {}
    with torch.device("meta"):  # half a gigabyte of weights says nothing here
        exec(code, names)
    model, system = names["model"], names["system"]
    assert system.num_positions("image") == promised
    projector = model.stream("image").projector
    assert (projector.up.in_features, projector.down.out_features) == (1152 * 9, 896)


def test_every_room_stands_in_both_pictures():
    rooms = {path.name for path in (ROOT / "src" / "weft").iterdir() if path.is_dir() and any(path.glob("*.py"))}
    for document in ("README.md", "docs/architecture.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        assert {room for room in rooms if not re.search(rf"\b{room}\b", text)} == set(), document


def test_every_command_stands_in_the_readme():
    from weft.serving.cli import app

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names = [command.name for command in app.registered_commands] + [group.name for group in app.registered_groups]
    assert len(names) >= 8
    assert [name for name in names if f"weft {name}" not in text] == []


def test_decisions_are_numbered_without_gaps():
    numbers = sorted(int(path.name[:4]) for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    assert numbers == list(range(1, len(numbers) + 1))
