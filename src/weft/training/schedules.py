"""Learning-rate schedules as arithmetic: the share of the peak rate at a step."""

from __future__ import annotations

import math

from weft.training.stage import Schedule, Stage

_ROUNDING = 1e-9  # 0.07 * 100 is a hair above 7 in binary; it must not become 8


def warmup_steps(schedule: Schedule, steps: int) -> int:
    """Steps of warm-up: a share of the steps, rounded up, or a plain number."""
    if schedule.warmup < 1:
        return math.ceil(schedule.warmup * steps - _ROUNDING)
    return int(schedule.warmup)


def rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """What the peak rate is multiplied by at `step`, counted from 0, of `steps`.

    The warm-up starts at 0 and reaches the peak at step W; decays reach `final` at step T, one past the last.
    """
    warmup = warmup_steps(schedule, steps)
    if step < warmup:
        return step / warmup
    if schedule.decay == "constant":
        return 1.0
    if schedule.decay == "trapezoid":
        cooldown = math.ceil(schedule.cooldown * steps - _ROUNDING)
        left = min(1.0, (steps - step) / max(1, cooldown))
    else:
        left = (steps - step) / max(1, steps - warmup)
        if schedule.decay == "cosine":
            left = 0.5 * (1.0 + math.cos(math.pi * (1.0 - left)))
    return schedule.final + (1.0 - schedule.final) * left


def num_steps(stage: Stage, num_samples: int) -> int:
    """Optimizer steps of a stage over a data set of `num_samples`; the last batch of an epoch counts as a step."""
    if stage.steps is not None:
        return stage.steps
    assert stage.epochs is not None
    return max(1, math.ceil(math.ceil(num_samples / stage.batch_size) * stage.epochs - _ROUNDING))
