"""What docs/add-a-projector.md tells a reader to write works: found by being there, held to the contract, and tested."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_pages_files_pass_their_own_test_and_the_contract(tmp_path):
    """In a process of its own, where the projectors' room has a second folder with the new file."""
    text = (ROOT / "docs" / "add-a-projector.md").read_text(encoding="utf-8")
    part, test = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "every_second.py").write_text(part)
    (tmp_path / "test_every_second.py").write_text(test)
    (tmp_path / "extra_room.py").write_text(
        f"import weft.projectors\nweft.projectors.__path__.append({str(tmp_path / 'room')!r})\n"
    )
    contract = ROOT / "tests" / "contract" / "test_projectors.py"
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "extra_room", "-p", "no:cacheprovider", "-k", "every_second"]
    paths = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    run = subprocess.run(
        [*command, str(tmp_path / "test_every_second.py"), str(contract)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    for name in ("test_the_features_left_out_do_not_matter", "test_tokens_emitted_are_tokens_promised[every_second]"):
        assert re.search(rf"PASSED .*{re.escape(name)}", run.stdout), run.stdout
