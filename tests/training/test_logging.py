"""What a run's metrics tell of its time."""

import json

import pytest

from weft.training.logging import METRICS, stage_seconds


def test_the_time_of_a_stage_is_that_of_all_its_sessions(tmp_path):
    steps = [("align", 1, 3.0), ("align", 2, 5.0), ("align", 3, 2.5), ("align", 4, 4.0), ("align", 5, 0.5), ("tune", 1, 7.0)]
    lines = [json.dumps({"kind": "train", "stage": stage, "step": step, "seconds": now}) for stage, step, now in steps]
    lines.append(json.dumps({"kind": "validation", "stage": "tune", "step": 1, "seconds": 7.5}))
    (tmp_path / METRICS).write_text("\n".join([*lines, '{"kind": "tra']))
    assert stage_seconds(tmp_path) == pytest.approx({"align": 5.0 + 4.0 + 0.5, "tune": 7.5})


def test_a_run_without_a_step_took_no_time(tmp_path):
    assert stage_seconds(tmp_path) == {}
