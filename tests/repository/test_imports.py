"""Imports go one way between the rooms of src/weft, heavy libraries stay where they are used, and there are no circles."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "weft"
PARTS = {"encoders", "projectors", "language_models", "fusion", "generators", "systems"}

# What each room may import, itself and core included by rule. Parts are peers: none imports another.
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "layers": set(),
    **{part: {"layers"} for part in PARTS},
    "objectives": set(),
    "data": set(),
    "checkpoints": PARTS | {"layers"},
    "inference": PARTS | {"layers", "data"},
    "training": PARTS | {"layers", "data", "inference", "objectives", "checkpoints"},
    "doctor": PARTS | {"layers", "data", "inference", "objectives", "checkpoints", "training"},
    "synthesis": PARTS | {"layers", "data", "inference"},
    "evaluation": PARTS | {"layers", "data", "inference"},
    "export": PARTS | {"layers", "checkpoints"},
}
EVERYTHING = {"recipes", "serving"}  # recipes import all but serving, serving imports all
LIGHT = {"core", "layers", "training", *PARTS}  # no model library here, not even inside a function
# parts that a model library runs, and that say so in their name and first line
WRAPPERS = {"encoders/clap_laion.py", "language_models/huggingface.py"}
MODEL_LIBRARIES = {"transformers", "peft", "diffusers", "timm", "open_clip"}
LAZY = {"transformers", "sklearn", "matplotlib", "sentencepiece", "tensorboard", "peft", "diffusers", "av"}


class Import(NamedTuple):
    path: Path
    line: int
    module: str
    at_start: bool  # runs when the file is imported

    @property
    def where(self) -> str:
        return f"{self.path.relative_to(SOURCE.parent)}:{self.line} imports {self.module}"


def imports_of(path: Path) -> Iterator[Import]:
    """Every import of a file; those under `if TYPE_CHECKING` never run and are left out of the start."""
    tree = ast.parse(path.read_text(encoding="utf-8"))

    def walk(node: ast.AST, at_start: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(path, child.lineno, alias.name, at_start) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: relative imports hide the room; write the full name"
                assert child.module is not None
                submodules = [f"{child.module}.{alias.name}" for alias in child.names]
                named = [name for name in submodules if is_module(name)]
                for name in named or [child.module]:
                    yield Import(path, child.lineno, name, at_start)
            else:
                yield from walk(child, at_start and not runs_later(child))

    return walk(tree, True)


def runs_later(node: ast.AST) -> bool:
    """A function's body, or what only a type checker reads."""
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def is_module(name: str) -> bool:
    return file_of(name) is not None


def file_of(module: str) -> Path | None:
    """The file of one of Weft's own modules."""
    if module.split(".")[0] != "weft":
        return None
    stem = SOURCE.joinpath(*module.split(".")[1:])
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if path.is_file():
            return path
    return None


def room_of(path: Path) -> str | None:
    parts = path.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else None


FILES = sorted(SOURCE.rglob("*.py"))
IMPORTS = [found for path in FILES for found in imports_of(path)]


def breaches(imports: list[Import]) -> list[str]:
    """The imports that go against the direction."""
    wrong = []
    for found in imports:
        source, steps = room_of(found.path), found.module.split(".")
        if steps[0] != "weft" or len(steps) == 1 or source is None:
            continue
        target = steps[1]
        if not (SOURCE / target).is_dir():
            continue
        if source in EVERYTHING:
            allowed = source == "serving" or target != "serving"
        else:
            allowed = target in {source, "core"} | MAY_IMPORT[source]
            if source in PARTS and target in PARTS:
                allowed = target == source
        if not allowed:
            wrong.append(found.where)
    return wrong


def test_every_room_has_a_place_in_the_direction():
    rooms = {path.name for path in SOURCE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms <= set(MAY_IMPORT) | EVERYTHING, "say in MAY_IMPORT what the new room may import"


def test_imports_go_one_way():
    assert len(IMPORTS) > 100
    assert breaches(IMPORTS) == []


@pytest.mark.parametrize(
    ("room", "module"),
    [
        ("core", "weft.layers.block"),
        ("encoders", "weft.projectors.mlp"),
        ("data", "weft.systems.multimodal_lm"),
        ("inference", "weft.training.stage"),
        ("recipes", "weft.serving.cli"),
    ],
)
def test_the_check_finds_an_import_against_the_direction(room, module):
    assert len(breaches([Import(SOURCE / room / "example.py", 1, module, True)])) == 1


def test_model_libraries_stay_out_of_the_core():
    found = [i for i in IMPORTS if room_of(i.path) in LIGHT and i.module.split(".")[0] in MODEL_LIBRARIES]
    assert [i.where for i in found if i.path.relative_to(SOURCE).as_posix() not in WRAPPERS] == []
    assert {i.path.relative_to(SOURCE).as_posix() for i in found} == WRAPPERS


@pytest.mark.parametrize("wrapper", sorted(WRAPPERS))
def test_a_wrapper_says_that_it_is_one(wrapper):
    tree = ast.parse((SOURCE / wrapper).read_text(encoding="utf-8"))
    assert "a wrapper" in (ast.get_docstring(tree) or "").splitlines()[0]
    assert any(isinstance(node, ast.ClassDef) and node.name.endswith("Wrapper") for node in tree.body)


def test_heavy_libraries_are_imported_where_they_are_used():
    wrong = [i.where for i in IMPORTS if i.at_start and i.module.split(".")[0] in LAZY]
    assert wrong == []


def test_no_circle_of_imports():
    """Depth first over the imports that run at start; a file met again on its own path closes a circle."""
    edges: dict[Path, set[Path]] = {path: set() for path in FILES}
    for found in IMPORTS:
        target = file_of(found.module)
        if found.at_start and target is not None and target != found.path:
            edges[found.path].add(target)
    done: set[Path] = set()

    def visit(path: Path, trail: tuple[Path, ...]) -> None:
        if path in trail:
            circle = [str(p.relative_to(SOURCE)) for p in (*trail[trail.index(path) :], path)]
            raise AssertionError("a circle of imports: " + " -> ".join(circle))
        if path not in done:
            for target in sorted(edges[path]):
                visit(target, (*trail, path))
            done.add(path)

    for path in FILES:
        visit(path, ())
    assert done == set(FILES)
