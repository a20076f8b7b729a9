"""Learning rates and step counts of published runs (LLaVA-1.5, arXiv:2310.03744; LLaVA, arXiv:2304.08485)."""

import math
from dataclasses import replace

import pytest
from tiny_training import recipe

from weft.training.schedules import num_steps, rate_factor, warmup_steps
from weft.training.stage import Schedule

COSINE = Schedule(decay="cosine", warmup=0.03)


@pytest.mark.parametrize(
    ("rows", "batch", "steps", "warmup"),
    [
        pytest.param(558_128, 256, 2_181, 66, id="llava-1.5 stage 1"),
        pytest.param(665_298, 128, 5_198, 156, id="llava-1.5 stage 2"),
        pytest.param(595_375, 128, 4_652, 140, id="llava stage 1"),
        pytest.param(157_712, 32, 4_929, 148, id="llava stage 2, one epoch"),
    ],
)
def test_an_epoch_has_the_published_number_of_steps(rows, batch, steps, warmup):
    stage = replace(recipe().stages[0], batch_size=batch, steps=None, epochs=1)
    assert num_steps(stage, rows) == steps
    assert warmup_steps(COSINE, steps) == warmup


def test_three_epochs_are_three_times_the_steps_of_one():
    stage = replace(recipe().stages[0], batch_size=32, steps=None, epochs=3)
    assert num_steps(stage, 157_712) == 3 * 4_929


def test_cosine_passes_through_the_published_rates():
    def rate(step):
        return 1e-3 * rate_factor(COSINE, step, 2_181)

    assert rate(0) == 0
    assert rate(33) == pytest.approx(5e-4)
    assert rate(66) == 1e-3
    assert (rate(1_123) + rate(1_124)) / 2 == pytest.approx(5e-4)  # step 1,123.5 is half-way between 66 and 2,181
    assert rate(2_180) == pytest.approx(5.5e-10, rel=0.01)


def test_warmup_shares_are_rounded_up_but_not_by_binary_fractions():
    assert warmup_steps(Schedule(warmup=0.03), 101) == 4
    assert warmup_steps(Schedule(warmup=0.07), 100) == 7
    assert 0.07 * 100 > 7
    assert warmup_steps(Schedule(warmup=20), 1000) == 20


def test_linear_falls_evenly_to_its_final_share():
    schedule = Schedule(decay="linear", warmup=0, final=0.1)
    assert [rate_factor(schedule, s, 4) for s in range(4)] == pytest.approx([1.0, 0.775, 0.55, 0.325])


def test_constant_stays_at_the_peak():
    schedule = Schedule(decay="constant", warmup=2)
    assert [rate_factor(schedule, s, 5) for s in range(5)] == [0, 0.5, 1, 1, 1]


def test_trapezoid_stays_and_then_falls_over_its_cooldown():
    schedule = Schedule(decay="trapezoid", warmup=2, cooldown=0.4)
    factors = [rate_factor(schedule, s, 10) for s in range(10)]
    assert factors == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("decay", ["cosine", "linear", "trapezoid"])
def test_no_schedule_leaves_the_range_from_zero_to_peak(decay):
    schedule = Schedule(decay=decay, warmup=0.1, final=0.05)
    factors = [rate_factor(schedule, s, 37) for s in range(37)]
    assert all(0 <= f <= 1 for f in factors)
    assert max(factors) == 1
    assert math.isclose(rate_factor(schedule, 37, 37), 0.05)
