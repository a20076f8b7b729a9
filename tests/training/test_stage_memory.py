"""The memory of a stage, worked out by hand."""

from dataclasses import replace

import pytest

from weft.core.errors import ConfigError
from weft.recipes.catalogue import recipe, tiny_recipe
from weft.systems.accounting import SampleShape, on_meta
from weft.training.memory import stage_cost
from weft.training.stage import Optimizer

SAMPLE = SampleShape(16, {"image": (1, 3, 64, 64)})


def cost_of(stage):
    return stage_cost(stage, on_meta(stage.system), SAMPLE)


def test_stage_1_of_llava_1_5_trains_the_projector_alone():
    stage = recipe("llava-1.5", "7b").stage("align")
    cost = stage_cost(stage, on_meta(stage.system), SampleShape(8, {"image": (1, 3, 336, 336)}))
    assert cost.trained_parameters == 20_979_712
    assert cost.all_parameters == 7_062_902_784
    assert cost.share == pytest.approx(0.00297, abs=5e-6)
    assert cost.weight_bytes == (4 + 2) * 7_062_902_784  # float32 and the bf16 copy
    assert cost.gradient_bytes == 4 * 20_979_712
    assert cost.optimizer_bytes == 8 * 20_979_712


def test_float32_needs_no_copy_of_the_weights():
    stage = tiny_recipe("llava-1.5").stage("instruct")
    assert stage.precision == "fp32"
    assert cost_of(stage).weight_bytes == 4 * cost_of(stage).all_parameters
    assert cost_of(replace(stage, precision="bf16")).weight_bytes == 6 * cost_of(stage).all_parameters


def test_muon_keeps_one_buffer_for_a_matrix_and_adamw_two():
    stage = tiny_recipe("llava").stage("align")  # trains one matrix [64, 64] and its bias [64]
    assert cost_of(stage).optimizer_bytes == 4 * 2 * (64 * 64 + 64)
    muon = replace(stage, optimizer=Optimizer(name="muon"))
    assert cost_of(muon).optimizer_bytes == 4 * (64 * 64 + 2 * 64)


def test_what_trains_decides_what_is_kept():
    stages = tiny_recipe("llava-1.5")
    align, instruct = cost_of(stages.stage("align")), cost_of(stages.stage("instruct"))
    assert align.activation_bytes < instruct.activation_bytes
    assert align.total_bytes(0) < instruct.total_bytes(0)
    assert instruct.total_bytes(3) - instruct.total_bytes(1) == 2 * instruct.activation_bytes


def test_a_pattern_that_trains_nothing_is_an_error():
    stage = replace(tiny_recipe("llava").stage("align"), train=("no_such.*",))
    with pytest.raises(ConfigError, match="no_such"):
        cost_of(stage)
