"""One row of a comparison: a candidate with a seed, trained and measured in a run folder of its own."""

from __future__ import annotations

import ctypes
import gc
import json
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from weft.core.errors import RunError
from weft.evaluation.statistics import Estimate
from weft.recipes.conditions import Conditions
from weft.training.atomic import write_text_atomically
from weft.training.logging import METRICS, stage_seconds

if TYPE_CHECKING:
    from weft.training.progress import StageEnd, StageStart, StepReport

ROW = "row.json"
MEASURES = "measures.json"
LOOKS = 0.20
"""How far above the same model with shuffled pictures a row must lie before it counts."""
_PLATEAU = 0.95  # of the loss without pictures: above it a model has learned the words and not yet the pictures


@dataclass(frozen=True)
class Row:
    """What one row measured.

    `steps` are those of all stages that the row trained; `trained` is the share of parameters that each of them trained;
    `tokens` those of a picture, wherever they stand. `by_type` has the scores of model and baselines by question type.
    `conditions` are those that the row was trained under, several where it went on under others, none where that was not
    recorded.
    Units: operations of one sample at `TEXT_TOKENS` words; seconds of training; bytes of the process at its peak (None: the
    system does not tell); losses on held-out samples, `text_only_loss` that of the language model before it saw a picture;
    accuracies are means over question types with 95% intervals over questions.
    """

    candidate: str
    family: str
    seed: int
    steps: int
    questions_per_type: int
    tokens: int
    parameters: int
    trained: Mapping[str, float]
    forward_flops: int
    training_flops: int
    training_seconds: float
    peak_memory_bytes: int | None
    loss: float
    text_only_loss: float
    accuracy: Estimate
    shuffled: Estimate
    gain: Estimate
    text_only: Estimate | None
    most_frequent: Estimate | None
    by_type: Mapping[str, Mapping[str, Estimate]]
    conditions: tuple[Conditions, ...] = ()

    @property
    def learned(self) -> bool:
        """Whether the row has learned to look."""
        return self.gain.value > LOOKS

    @property
    def reason(self) -> str:
        """Why a row does not count; empty where it does."""
        if self.learned:
            return ""
        seen = f"pictures are worth {100 * self.gain.value:+.1f} points, it takes more than {100 * LOOKS:.0f}"
        if self.loss > _PLATEAU * self.text_only_loss:
            return f"loss {self.loss:.3f} is still at its plateau ({self.text_only_loss:.3f} without pictures); {seen}"
        return f"loss {self.loss:.3f} has left its plateau ({self.text_only_loss:.3f} without pictures), but {seen}"

    def save(self, folder: Path) -> None:
        """Write `row.json`: with it the row is finished."""
        write_text_atomically(folder / ROW, json.dumps(asdict(self), indent=2) + "\n")


def load_row(folder: Path) -> Row | None:
    """The finished row of a folder, None where there is none yet; a time that it lacks is read from its metrics.

    Raises: RunError for a damaged one.
    """
    path = folder / ROW
    if not path.exists():
        return None
    try:
        saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for name in ("accuracy", "shuffled", "gain", "text_only", "most_frequent"):
            saved[name] = None if saved[name] is None else Estimate(**saved[name])
        saved["by_type"] = {
            type: {run: Estimate(**score) for run, score in runs.items()} for type, runs in saved["by_type"].items()
        }
        saved["conditions"] = tuple(Conditions(**each) for each in saved.get("conditions", ()))
        if saved["training_seconds"] is None:
            saved["training_seconds"] = training_seconds(folder)
        if set(saved) != {field.name for field in fields(Row)}:
            raise ValueError("other fields than this version writes")
        return Row(**saved)
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path} is not a row of a comparison ({error}); delete it to measure this row again") from None


def training_seconds(folder: Path) -> float:
    """All stages that the run in a row's folder trained, over its resumes. Raises: ValueError where nothing tells it."""
    took = stage_seconds(folder)
    if not took:
        raise ValueError(f"its time is not known without a step in {METRICS}")
    return sum(took.values())


class Measures:
    """Keeps, over interruptions, how much memory each stage of a row took and under what conditions: a training callback."""

    def __init__(self, folder: Path, device: torch.device, now: Conditions) -> None:
        self.path = folder / MEASURES
        self.device = device
        self.now = now
        self.stages: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            self.stages = json.loads(self.path.read_text(encoding="utf-8"))

    def on_stage_start(self, start: StageStart) -> None:
        earlier = self.stages.get(start.name, {}).get("conditions", []) if start.first_step else []
        known = self.now in [Conditions(**each) for each in earlier]
        conditions = earlier if known else [*earlier, asdict(self.now)]
        self._keep(start.name, {"peak_memory_bytes": None, "conditions": conditions})
        forget_peak_memory(self.device)

    def on_step(self, report: StepReport) -> None:
        """Stages are measured as a whole."""

    def on_stage_end(self, end: StageEnd) -> None:
        self._keep(end.name, self.stages[end.name] | {"peak_memory_bytes": peak_memory_bytes(self.device)})

    def _keep(self, stage: str, measured: dict[str, Any]) -> None:
        self.stages[stage] = measured
        write_text_atomically(self.path, json.dumps(self.stages, indent=2) + "\n")

    @property
    def conditions(self) -> tuple[Conditions, ...]:
        """Those of all stages, each once; none where a stage recorded none."""
        recorded = [stage.get("conditions") for stage in self.stages.values()]
        if None in recorded:
            return ()
        return tuple(dict.fromkeys(Conditions(**each) for conditions in recorded for each in conditions or ()))

    @property
    def peak_memory_bytes(self) -> int | None:
        """The largest of the stages."""
        peaks = [stage["peak_memory_bytes"] for stage in self.stages.values()]
        return None if None in peaks or not peaks else max(peaks)


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak_memory(device: torch.device) -> None:
    """Begin to measure the peak anew, so that a row does not inherit that of the row before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    gc.collect()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # what the row before has freed goes back to the system
        with suppress(OSError):
            _CLEAR.write_text("5")  # resets VmHWM, proc(5)


def peak_memory_bytes(device: torch.device) -> int | None:
    """The most memory since `forget_peak_memory`: of the accelerator, or of this process; None where no system call tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if not _CLEAR.exists():
        return None
    found = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None
