"""What docs/add-a-system.md tells a reader to write works: found by being there, trained, saved and asked like every recipe."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HELD_TO = (
    "tests/contract/test_stage_law.py",
    "tests/recipes/test_recipe_catalogue.py",
    "tests/recipes/test_tiny_recipes.py",
)
PASSED = (
    "test_both_streams_see_through_one_tower",
    "test_a_step_moves_what_trains_and_nothing_else[nvlm-h-instruct]",
    "test_tiny_keeps_the_published_stages[nvlm-h]",
    "test_all_stages_train_and_the_model_answers[nvlm-h]",
)


def test_the_pages_recipe_passes_its_own_test_and_those_of_every_recipe(tmp_path):
    """In a process of its own, where the recipes' room has a second folder with the new file."""
    text = (ROOT / "docs" / "add-a-system.md").read_text(encoding="utf-8")
    part, test = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "nvlm_h.py").write_text(part)
    (tmp_path / "test_nvlm_h.py").write_text(test)
    (tmp_path / "extra_room.py").write_text(f"import weft.recipes\nweft.recipes.__path__.append({str(tmp_path / 'room')!r})\n")
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "extra_room", "-p", "no:cacheprovider", "-k", "nvlm"]
    paths = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    run = subprocess.run(
        [*command, str(tmp_path / "test_nvlm_h.py"), *HELD_TO],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    for name in PASSED:
        assert re.search(rf"PASSED .*{re.escape(name)}", run.stdout), run.stdout
