"""Checkpoints of a running stage: everything that the next step depends on."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from weft.core.errors import CheckpointError
from weft.training.atomic import atomic_folder
from weft.training.model_folder import WEIGHTS, load_weights, read_weights, write_weights
from weft.training.optimizers import StageOptimizer
from weft.training.randomness import random_state, set_random_state

STATE = "state.pt"
_NAME = re.compile(r"(?P<stage>.+)-(?P<step>\d+)")


@dataclass(frozen=True)
class CheckpointPlace:
    """One checkpoint on the disk; `step` counts the optimizer steps taken."""

    path: Path
    stage: str
    step: int


class Checkpoints:
    """The last `keep` checkpoints under a run's folder; a new one is whole before an old one goes."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = keep

    def all(self, stage: str) -> list[CheckpointPlace]:
        """The whole checkpoints of a stage, oldest first."""
        found = []
        for path in self.folder.glob("*-*") if self.folder.exists() else ():
            match = _NAME.fullmatch(path.name)
            if match and match["stage"] == stage and (path / STATE).exists():
                found.append(CheckpointPlace(path, stage, int(match["step"])))
        return sorted(found, key=lambda place: place.step)

    def save(
        self, stage: str, step: int, run_id: str, system: nn.Module, optimizer: StageOptimizer, objective: nn.Module
    ) -> CheckpointPlace:
        """Write a checkpoint after `step` steps, then delete what is older than the last `keep`.

        Raises: RunError where the disk refuses; earlier checkpoints stay.
        """
        place = CheckpointPlace(self.folder / f"{stage}-{step}", stage, step)
        with atomic_folder(place.path) as partial:
            write_weights(partial / WEIGHTS, system)
            state = {
                "run": run_id,
                "stage": stage,
                "step": step,
                "optimizer": optimizer.state_dict(),
                "objective": objective.state_dict(),
                "random": random_state(),
            }
            torch.save(state, partial / STATE)
        for old in self.all(stage)[: -self.keep]:
            shutil.rmtree(old.path, ignore_errors=True)
        return place

    def load(
        self, place: CheckpointPlace, run_id: str, system: nn.Module, optimizer: StageOptimizer, objective: nn.Module
    ) -> None:
        """Put weights, optimizer, objective and random generators back.

        Raises: CheckpointError for a damaged checkpoint or one of another run.
        """
        try:
            state: dict[str, Any] = torch.load(place.path / STATE, weights_only=True, map_location="cpu")
        except Exception as error:  # torch raises many kinds for a damaged or hostile file
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(
                f"{place.path / STATE} cannot be read ({reason}); delete {place.path} to resume earlier"
            ) from None
        if state.get("run") != run_id:
            raise CheckpointError(f"{place.path} belongs to another run; delete it, or resume in its own folder")
        load_weights(system, read_weights(place.path / WEIGHTS), str(place.path))
        optimizer.load_state_dict(state["optimizer"])
        objective.load_state_dict(state["objective"])
        set_random_state(state["random"])

    def drop(self, stage: str) -> None:
        """Delete the checkpoints of a stage that is finished: its model folder holds the result."""
        for place in self.all(stage):
            shutil.rmtree(place.path, ignore_errors=True)
