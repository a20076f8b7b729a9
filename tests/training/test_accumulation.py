"""The loss is normalised over the accumulation window: how it is cut into micro-batches changes nothing."""

from dataclasses import replace

import pytest
import tiny_training
import torch

from weft.data.collate import collate
from weft.training.data_stream import DataStream, SampleOrder
from weft.training.freezing import freeze
from weft.training.optimizers import build_optimizer
from weft.training.sample_reader import SampleReader
from weft.training.stage import Optimizer, Schedule
from weft.training.stage_loop import StageLoop

BATCH = 8


def one_step(micro_batch_size, precision="fp32"):
    stage = replace(
        tiny_training.recipe().stages[1],
        batch_size=BATCH,
        micro_batch_size=micro_batch_size,
        precision=precision,
        optimizer=Optimizer(clip_norm=None),
        schedule=Schedule(decay="constant", warmup=0),
    )
    torch.manual_seed(0)
    system = stage.system.build()
    processor = stage.processor.build(tiny_training.tokenizer(), stage.system)
    dataset = stage.data.build()
    order = SampleOrder(len(dataset), BATCH, 0, stage.name)
    samples = SampleReader(dataset, processor.encode)
    stream = DataStream(samples, order, collate, micro_batch_size=micro_batch_size, start=0, stop=1)
    data = stream.step_data(0)
    optimizer = build_optimizer(stage.optimizer, system, freeze(system, ("*",)))
    objective = stage.objective.build()
    loop = StageLoop(stage, system, objective, optimizer, steps=1, device=torch.device("cpu"), last_good=lambda: "none")
    weights = [float(objective.weights(batch)["next_token"]) for batch in data.micro_batches]
    loop.prepare()
    window, norm = loop.step(data, 1.0)
    return weights, window.loss, norm, {n: p.grad for n, p in system.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("micro_batch_size", [4, 2, 3])
def test_splits_of_a_batch_give_one_loss_and_one_gradient(micro_batch_size):
    _, loss, norm, gradients = one_step(BATCH)
    weights, split_loss, split_norm, split_gradients = one_step(micro_batch_size)
    assert len(set(weights)) > 1, "the micro-batches must hold different numbers of targets for this to prove anything"
    assert split_loss == pytest.approx(loss, abs=1e-6)
    assert split_norm == pytest.approx(norm, abs=1e-6)
    assert split_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(split_gradients[name], gradient, atol=1e-6), name  # fp32 sums in another order


def test_a_mean_of_means_would_be_another_loss():
    weights, loss, _, _ = one_step(2)
    shares = [w / sum(weights) for w in weights]
    assert max(shares) > 1.2 / len(weights), "a mean of the micro-batches' means would weigh them all alike"
    assert loss > 0
