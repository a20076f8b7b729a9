"""A run's folder: who may write into it, what is where, whether it fits on the disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import IO, Any

from weft.core import config
from weft.core.errors import RunError
from weft.training.atomic import atomic_folder, remove_partial, write_text_atomically
from weft.training.logging import BOARD, METRICS, TEXT, read_metrics
from weft.training.stage import Recipe

RECIPE = "recipe.json"
RUN = "run.json"
LOCK = ".lock"
_SHOWN = 5


class RunFolder:
    """`recipe.json`, `run.json` (identity, seed), logs, `checkpoints/`, `stages/<stage>/` and `model/`."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.run_id = ""
        self._held: IO[str] | None = None
        self._older: set[str] | None = None  # what stood in the folder when `start` claimed it
        self._made = False

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The model folder of the last stage."""
        return self.path / "model"

    def stage(self, name: str) -> Path:
        """The model folder that a finished stage leaves; it exists only once the stage is finished."""
        return self.path / "stages" / name

    def targets(self, name: str) -> Path:
        """What a stage found before its first step for its data to say."""
        return self.path / "targets" / name

    def start(self, recipe: Recipe, seed: int, tokenizer_text: str, processes: int = 1) -> None:
        """Claim the folder for a new run of so many processes.

        Raises: RunError where a run stands there already, or the place cannot be written.
        """
        if (self.path / RUN).exists():
            raise RunError(f"{self.path} already holds a run; resume it with --resume, or give another folder with --output")
        self._made = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.path} cannot be a run's folder ({error.strerror}); give another with --output") from None
        self.run_id = uuid.uuid4().hex
        run = {"id": self.run_id, "seed": seed, "tokenizer": _digest(tokenizer_text), "processes": processes}
        older = {entry.name for entry in self.path.iterdir()}
        self._lock()
        self._older = older
        write_text_atomically(self.path / RECIPE, config.dumps(recipe))
        write_text_atomically(self.path / RUN, json.dumps(run, indent=2) + "\n")  # last: with it the run exists

    def abandon(self) -> None:
        """Take back what `start` and the logs wrote where no step was taken, so that a corrected call finds the folder free.

        What stood there before stays; nothing happens to a folder that `start` did not claim.
        """
        kept = [file for place in ("checkpoints", "stages") for file in (self.path / place).glob("*/*")]
        if self._older is None or kept or read_metrics(self.path):
            return
        for name in (RUN, RECIPE, METRICS, TEXT, LOCK):
            if name not in self._older:
                (self.path / name).unlink(missing_ok=True)
        for name in ("checkpoints", "stages", "targets", BOARD):
            if name not in self._older:
                shutil.rmtree(self.path / name, ignore_errors=True)
        if self._made and not any(self.path.iterdir()):
            self.path.rmdir()

    def resume(self, recipe: Recipe, seed: int, tokenizer_text: str) -> int:
        """Take up the run that stands here; returns how many processes it was started with, on which its sums depend.

        Raises: RunError where there is none, or where recipe, seed or tokenizer differ; the difference is shown.
        """
        if not (self.path / RUN).exists() or not (self.path / RECIPE).exists():
            raise RunError(f"{self.path} holds no run to resume; leave out --resume to start one")
        try:
            run = json.loads((self.path / RUN).read_text(encoding="utf-8"))
            saved = json.loads((self.path / RECIPE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path}: {RUN} or {RECIPE} cannot be read ({error}); start again in another folder") from None
        differences = _differences(saved, json.loads(config.dumps(recipe)))
        if run["seed"] != seed:
            differences.append(f"seed: {run['seed']} -> {seed}")
        if run["tokenizer"] != _digest(tokenizer_text):
            differences.append("tokenizer: another vocabulary")
        if differences:
            more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
            raise RunError(
                f"{self.path} was started with another recipe ({'; '.join(differences[:_SHOWN])}{more}); "
                "resume with what it was started with, or give another folder with --output"
            )
        self.run_id = run["id"]
        self._lock()
        for folder in (self.path, self.checkpoints, self.path / "stages", self.path / "targets"):
            remove_partial(folder)
        return int(run.get("processes", 1))

    def release(self) -> None:
        """Let another process train here."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def _lock(self) -> None:
        """Keep other processes out until `release` or the end of this one, however it ends."""
        try:
            import fcntl
        except ImportError:  # no such locks on this system
            return
        held = (self.path / LOCK).open("w")
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            held.close()
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return  # a file system without locks
            raise RunError(
                f"another process trains in {self.path}; wait for it, or give another folder with --output"
            ) from None
        self._held = held

    def publish(self, stage: str) -> None:
        """Make `model/` the finished stage's model folder; the files are shared where the file system can."""
        with atomic_folder(self.model) as partial:
            for file in sorted(path for path in self.stage(stage).rglob("*") if path.is_file()):
                place = partial / file.relative_to(self.stage(stage))
                place.parent.mkdir(exist_ok=True)
                try:
                    os.link(file, place)
                except OSError:
                    shutil.copy2(file, place)

    def require_space(self, num_bytes: int, what: str) -> None:
        """Raises: RunError where the disk has less than `num_bytes` left."""
        free = shutil.disk_usage(self.path).free
        if free < num_bytes:
            raise RunError(
                f"{what} needs about {_size(num_bytes)} under {self.path} and the disk has {_size(free)} left; "
                "free some space or give another folder with --output"
            )


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two JSON values differ, as `path: old -> new`; list members that have a name are named by it.

    How strictly a file is read is no difference: what a strict reader has read, a lenient one reads alike.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in (k for k in {**old, **new} if k != "strict"):
            found += _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        found = []
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            step = a.get("name", index) if isinstance(a, dict) else index
            found += _differences(a, b, f"{path}.{step}")
        return found
    return [] if old == new else [f"{path}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"
