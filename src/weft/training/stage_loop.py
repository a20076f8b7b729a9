"""The steps of one stage: accumulate, clip, update, tell, check, keep."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from weft.core.batch import MultimodalBatch
from weft.core.errors import RunError
from weft.core.interfaces import Objective, System
from weft.training.data_stream import DataStream, StepData
from weft.training.freezing import set_training_mode
from weft.training.optimizers import StageOptimizer
from weft.training.progress import StepReport
from weft.training.ranks import Ranks
from weft.training.schedules import rate_factor
from weft.training.stage import Stage

Mark = tuple[float, float, int, int]  # time, seconds waited for data, samples, tokens
_SPEED_WINDOW = 50  # steps over which speeds are averaged


@dataclass(frozen=True)
class WindowLoss:
    """The loss of one accumulation window and its terms."""

    loss: float
    terms: dict[str, float]


class StageLoop:
    """One stage on one device, from step `start` to its end.

    `run` tells every report to `tell` and calls `keep(step)` after every step, which writes checkpoints and may end the
    run by an exception. The loss on `validation` is taken every `validate_every` steps and after the last.
    """

    def __init__(
        self,
        stage: Stage,
        system: System,
        objective: Objective,
        optimizer: StageOptimizer,
        *,
        steps: int,
        device: torch.device,
        last_good: Callable[[], str],
        ranks: Ranks | None = None,
    ) -> None:
        self.stage = stage
        self.system = system
        self.objective = objective
        self.optimizer = optimizer
        self.steps = steps
        self.device = device
        self.last_good = last_good
        self.ranks = ranks or Ranks()

    def run(
        self,
        stream: DataStream,
        tell: Callable[[StepReport], None],
        keep: Callable[[int], None],
        validation: Sequence[MultimodalBatch] = (),
        validate_every: int | None = None,
    ) -> StepReport | None:
        """Take the steps that `stream` holds; returns the last report."""
        self.prepare()
        began = time.perf_counter()
        marks: deque[Mark] = deque([(began, 0.0, 0, 0)], maxlen=_SPEED_WINDOW + 1)
        report = None
        for step in stream.steps:
            data = stream.next()
            factor = rate_factor(self.stage.schedule, step, self.steps)
            window, norm = self.step(data, factor)
            now = time.perf_counter()
            samples, tokens = self.ranks.total(data.num_samples, data.num_tokens)
            marks.append((now, stream.waited, marks[-1][2] + samples, marks[-1][3] + tokens))
            report = self._report(step + 1, window, norm, factor, now - began, marks)
            tell(report)
            due = validate_every is not None and (step + 1) % validate_every == 0
            if validation and (due or step + 1 == self.steps):
                tell(self._validation_report(step + 1, self.validate(validation), time.perf_counter() - began))
            keep(step + 1)
        return report

    def prepare(self) -> None:
        """Training mode for what trains; frozen parts stay in evaluation mode."""
        set_training_mode(self.system)
        self.objective.train()

    def step(self, data: StepData, factor: float) -> tuple[WindowLoss, float]:
        """One optimizer step over an accumulation window, in which every rank has its share of the samples.

        The loss is normalised by the weights of the whole window, known before its first backward, so that any split into
        micro-batches gives the same gradients.

        Raises: RunError where loss or gradient is not finite; the parameters are then still those of the step before.
        """
        batches = [batch.to(self.device, non_blocking=True) for batch in data.micro_batches]
        weights = self.ranks.sum(_sum_by_name([self.objective.weights(batch) for batch in batches]))
        self.optimizer.zero_grad()
        parts = []
        for batch in batches:
            with self._precision():
                terms = self.objective(self.system, batch)
            shares = {name: total / weights[name].clamp_min(1e-12) for name, total in terms.sums.items()}
            torch.stack(list(shares.values())).sum().backward()
            parts.append({name: share.detach() for name, share in shares.items()})
        self.ranks.add_gradients(self.optimizer.parameters)
        norm = float(self.optimizer.clip())
        total = {name: float(value) for name, value in self.ranks.sum(_sum_by_name(parts)).items()}
        window = WindowLoss(sum(total.values()), total)
        if not _finite(window.loss) or not _finite(norm):
            self._stop_at(data, window, norm)
        self.optimizer.step(factor)
        self.objective.after_step(self.system)
        return window, norm

    @torch.no_grad()
    def validate(self, batches: Sequence[MultimodalBatch]) -> WindowLoss:
        """The loss over held-out batches, normalised over all of them, in evaluation mode."""
        self.system.eval()
        self.objective.eval()
        weights: list[dict[str, Tensor]] = []
        sums: list[dict[str, Tensor]] = []
        for batch in batches:
            batch = batch.to(self.device)
            with self._precision():
                terms = self.objective(self.system, batch)
            weights.append(terms.weights)
            sums.append(terms.sums)
        self.prepare()
        whole = self.ranks.sum(_sum_by_name(weights))
        summed = self.ranks.sum(_sum_by_name(sums))
        total = {name: float(value / whole[name].clamp_min(1e-12)) for name, value in summed.items()}
        return WindowLoss(sum(total.values()), total)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.stage.precision == "bf16")

    def _stop_at(self, data: StepData, window: WindowLoss, norm: float) -> None:
        names = data.sample_names
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        raise RunError(
            f"stage {self.stage.name!r} step {data.step + 1}: loss {window.loss} with gradient norm {norm} is not finite "
            f"on samples {shown}; {self.last_good()}; lower the rate, lengthen the warm-up or look at these samples"
        )

    def _report(
        self,
        step: int,
        window: WindowLoss,
        norm: float,
        factor: float,
        seconds: float,
        marks: Sequence[Mark],
    ) -> StepReport:
        (then, waited, samples, tokens), (now, waited_now, samples_now, tokens_now) = marks[0], marks[-1]
        span = max(now - then, 1e-9)
        return StepReport(
            kind="train",
            stage=self.stage.name,
            step=step,
            steps=self.steps,
            loss=window.loss,
            terms=window.terms,
            rate=self.stage.optimizer.learning_rate * factor,
            gradient_norm=norm,
            samples_per_second=(samples_now - samples) / span,
            tokens_per_second=(tokens_now - tokens) / span,
            data_wait=min(1.0, (waited_now - waited) / span),
            seconds=seconds,
            seconds_left=(self.steps - step) * span / max(1, len(marks) - 1),
        )

    def _validation_report(self, step: int, window: WindowLoss, seconds: float) -> StepReport:
        return StepReport("validation", self.stage.name, step, self.steps, window.loss, window.terms, seconds=seconds)


def record(report: StepReport) -> dict[str, Any]:
    """A report as a line of metrics.jsonl."""
    return {k: (round(v, 4) if k in _ROUNDED else v) for k, v in asdict(report).items()}


_ROUNDED = {"samples_per_second", "tokens_per_second", "data_wait", "seconds", "seconds_left"}


def _sum_by_name(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total[name] + value if name in total else value
    return total


def _finite(value: float) -> bool:
    return value - value == 0.0
