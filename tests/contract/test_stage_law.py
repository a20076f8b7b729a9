"""One step of a stage: every parameter that it trains moved, every other is bitwise what it was and has no gradient."""

import re
from dataclasses import replace
from functools import cache

import pytest
import torch
from contract_conditions import is_key_bias, is_unread_expert, open_gates

from weft.data.collate import collate
from weft.recipes.catalogue import recipe as full_recipe
from weft.recipes.catalogue import recipe_names, tiny_names, tiny_recipe
from weft.recipes.desk import tokenizer as desk_tokenizer
from weft.recipes.shrinking import tiny_tokenizer
from weft.training.cluster_targets import Labelled, find_clusters, frame_features
from weft.training.data_stream import StepData
from weft.training.freezing import freeze
from weft.training.optimizers import build_optimizer
from weft.training.sample_reader import SampleReader
from weft.training.stage import Schedule
from weft.training.stage_loop import StageLoop

SAMPLES = 4  # one step sees every modality
SMALL = [name for name in recipe_names() if name not in tiny_names()]  # made for the CPU as they are


@cache
def recipe(name):
    return tiny_recipe(name) if name in tiny_names() else full_recipe(name)


@cache
def tokenizer(name):
    return desk_tokenizer(100) if name in SMALL else tiny_tokenizer(100)


STAGES = [pytest.param(name, stage.name, id=f"{name}-{stage.name}") for name in recipe_names() for stage in recipe(name).stages]


def is_unread_instruction(name, system):
    """What a Q-Former's last block makes of an instruction, whose queries alone leave, is read by no one."""
    found = re.fullmatch(r"(streams\.\w+\.projector\.transformer\.blocks)\.(\d+)\.feed_forward\.text\..*", name)
    return found is not None and hasattr(system, "language_model") and int(found[2]) == len(system.get_submodule(found[1])) - 1


def labelled(name, stage):
    """A stage's data; with targets from earlier stages, the features of one that learned nothing yet are as good as any."""
    dataset = stage.data.build()
    if stage.targets is None:
        return dataset
    source = None if stage.targets.stage is None else recipe(name).stage(stage.targets.stage)
    features = frame_features(stage, source, lambda system: None, tokenizer(name))
    clusters = find_clusters(stage, SampleReader(dataset, features))
    return Labelled(dataset, stage.system.stream, lambda _, conversation: clusters.labels(features(conversation)))


@pytest.mark.parametrize(("name", "stage_name"), STAGES)
def test_a_step_moves_what_trains_and_nothing_else(name, stage_name):
    stage = recipe(name).stage(stage_name)
    stage = replace(
        stage,
        schedule=Schedule(decay="constant", warmup=0),
        optimizer=replace(stage.optimizer, weight_decay=0.0),
        precision="fp32",
        batch_size=SAMPLES,
        micro_batch_size=None,
    )
    torch.manual_seed(0)
    system = stage.system.build()
    open_gates(system)
    processor = stage.processor.build(tokenizer(name), stage.system)
    dataset = labelled(name, stage)
    batch = collate([processor.encode(dataset[i], max_tokens=stage.max_tokens) for i in range(SAMPLES)])
    trained = freeze(system, stage.train)
    before = {n: p.detach().clone() for n, p in system.named_parameters()}
    optimizer = build_optimizer(stage.optimizer, system, trained)
    objective = stage.objective.build()
    device = torch.device("cpu")
    loop = StageLoop(stage, system, objective, optimizer, steps=1, device=device, last_good=lambda: "none")
    modes = {}
    for n, module in system.named_modules():
        module.register_forward_pre_hook(lambda m, _, n=n: modes.__setitem__(n, m.training))
    loop.prepare()
    loop.step(StepData(0, (batch,), SAMPLES, batch.num_tokens), 1.0)

    now = dict(system.named_parameters())
    exempt = {n for n in trained if is_key_bias(n) or is_unread_expert(n, system) or is_unread_instruction(n, system)}
    still = [n for n in trained if torch.equal(now[n], before[n]) and n not in exempt]
    assert still == [], "a trained parameter that a step does not move"
    moved = [n for n in now if n not in trained and not torch.equal(now[n], before[n])]
    assert moved == [], "a frozen parameter that a step moves"
    assert [n for n in now if n not in trained and now[n].grad is not None] == []

    frozen = {n for n, m in system.named_modules() if list(m.parameters()) and not any(p.requires_grad for p in m.parameters())}
    assert [n for n in frozen if modes.get(n)] == [], "a frozen part that runs in training mode"
    assert any(modes.values()), "nothing runs in training mode"
