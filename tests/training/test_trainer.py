"""What the trainer refuses, what it tells, and where it stops."""

import math
import signal
import sys
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from tiny_training import STEPS, Squares, Strike, recipe, system, tokenizer

from weft.core.errors import ConfigError, RunError
from weft.objectives.contrastive import SoftmaxContrastive
from weft.objectives.next_token import NextToken
from weft.recipes.catalogue import tiny_recipe
from weft.recipes.shrinking import tiny_tokenizer
from weft.training.interrupts import TrainingInterrupted
from weft.training.logging import read_metrics
from weft.training.randomness import random_state, seed_everything, set_random_state
from weft.training.trainer import Trainer, check_recipe


class Poisoned(NextToken):
    """A loss that is not a number from its fourth call on."""

    @dataclass(frozen=True, kw_only=True)
    class Config(NextToken.Config):
        def build(self):
            return Poisoned(self)

    calls = 0

    def forward(self, system, batch):
        terms = super().forward(system, batch)
        self.calls += 1
        return replace(terms, sums={n: t * (math.nan if self.calls > 3 else 1) for n, t in terms.sums.items()})


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(tmp_path):
    poisoned = recipe(objective=Poisoned.Config())
    with pytest.raises(RunError) as caught:
        Trainer(poisoned, tmp_path / "run", tokenizer=tokenizer(), checkpoint_every=2).fit()
    message = str(caught.value)
    assert "stage 'align' step 4: loss nan" in message
    assert message.count("squares:") == 4
    assert "the last good checkpoint is" in message
    assert "align-2" in message
    assert (tmp_path / "run" / "checkpoints" / "align-2").is_dir()
    assert message in (tmp_path / "run" / "log.txt").read_text()


class InterruptAtTheEnd(Strike):
    """Ctrl-C when the last stage is through."""

    def on_stage_end(self, end):
        if end.name == "tune":
            signal.raise_signal(signal.SIGINT)


def test_an_interrupt_after_the_last_step_stops_what_would_follow(tmp_path):
    made = Trainer(recipe(), tmp_path / "run", tokenizer=tokenizer(), callbacks=[InterruptAtTheEnd(-1, None)])
    with pytest.raises(TrainingInterrupted, match=r"had finished when it was told to stop; .*model is whole"):
        made.fit()
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    assert Trainer(recipe(), tmp_path / "run", tokenizer=tokenizer()).fit(resume=True) == tmp_path / "run" / "model"


def with_stage(index, **changes):
    stages = list(recipe().stages)
    stages[index] = replace(stages[index], **changes)
    return replace(recipe(), stages=tuple(stages))


@pytest.mark.parametrize("changes", [{"micro_batch_size": 2}, {"packing": True}])
def test_an_objective_over_the_batch_is_neither_accumulated_nor_packed(changes):
    contrastive = with_stage(0, objective=SoftmaxContrastive.Config(), **changes)
    with pytest.raises(ConfigError, match="SoftmaxContrastive compares the samples of a batch"):
        check_recipe(contrastive)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": ("streams.imag.*",)}, r"stage 'tune': train: pattern 'streams\.imag\.\*' matches no parameter"),
        ({"takes": {"alignn": {"*": ""}}}, r"takes from \['alignn'\], which is no earlier stage; earlier are \['align'\]"),
        ({"takes": {"align": {"language_model.*": "language_model."}}}, "is neither filled nor declared new"),
        ({"name": "align"}, "stages of different names"),
    ],
)
def test_a_fault_of_a_later_stage_is_found_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        Trainer(with_stage(1, **changes), tmp_path / "run", tokenizer=tokenizer())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("stage", {"steps": 0}, "steps must be above 0, got 0"),
        ("stage", {"steps": None, "epochs": -1.0}, "epochs must be above 0"),
        ("stage", {"batch_size": 0}, "batch_size must be above 0"),
        ("stage", {"micro_batch_size": -1}, "micro_batch_size must be above 0"),
        ("stage", {"max_tokens": 0}, "max_tokens must be above 0"),
        ("stage", {"name": "../../elsewhere"}, "a stage's name is that of its folder"),
        ("optimizer", {"learning_rate": -1.0}, "learning_rate must be 0 or above"),
        ("optimizer", {"rates": {"*": math.nan}}, "must be 0 or above, got nan"),
        ("optimizer", {"clip_norm": 0.0}, "clip_norm must be above 0"),
        ("schedule", {"warmup": -0.5}, "warmup is a share below 1 or a number of steps"),
    ],
)
def test_a_figure_that_cannot_be_is_refused(part, changes, message):
    stage = recipe().stages[0]
    with pytest.raises(ConfigError, match=message):
        replace(stage if part == "stage" else getattr(stage, part), **changes)


def test_the_first_stage_has_nothing_to_take_from():
    with pytest.raises(ConfigError, match="stage 'align' is the first and has nothing to take from"):
        check_recipe(with_stage(0, takes={"tune": {"*": ""}}))


def test_a_stage_with_another_system_must_say_where_it_comes_from():
    other = replace(system(), language_model=replace(system().language_model, num_layers=1))
    with pytest.raises(ConfigError, match="neither filled nor declared new"):
        check_recipe(with_stage(1, system=other))
    check_recipe(with_stage(1, system=other, takes={"align": {"*": ""}}))


def test_the_first_stage_can_start_from_given_weights(tmp_path):
    def fill(fresh):
        with torch.no_grad():
            fresh.language_model.final_norm.weight.fill_(3.0)

    model = Trainer(recipe(steps=1), tmp_path / "run", tokenizer=tokenizer(), initialise={"align": fill}).fit()
    from weft.training.model_folder import read_weights

    align = read_weights(model.parent / "stages" / "align" / "model.safetensors")
    assert torch.equal(align["language_model.final_norm.weight"], torch.full((64,), 3.0))


class Listener:
    def __init__(self):
        self.starts, self.reports, self.ends, self.closed = [], [], [], 0

    def on_stage_start(self, start):
        self.starts.append(start)

    def on_step(self, report):
        self.reports.append(report)

    def on_stage_end(self, end):
        self.ends.append(end)

    def close(self):
        self.closed += 1


def test_callbacks_and_metrics_tell_the_same(tmp_path):
    listener = Listener()
    validated = recipe(validation=Squares.Config(size=10))
    Trainer(validated, tmp_path / "run", tokenizer=tokenizer(), callbacks=[listener], validate_every=4).fit()
    assert [(s.name, s.index, s.num_stages, s.steps, s.first_step) for s in listener.starts] == [
        ("align", 0, 2, STEPS, 0),
        ("tune", 1, 2, STEPS, 0),
    ]
    assert 0 < listener.starts[0].trained_parameters < listener.starts[1].trained_parameters
    train = [r for r in listener.reports if r.kind == "train"]
    assert [(r.stage, r.step) for r in train] == [(s, i + 1) for s in ("align", "tune") for i in range(STEPS)]
    validation = [(r.stage, r.step) for r in listener.reports if r.kind == "validation"]
    assert validation == [("align", 4), ("align", 6), ("tune", 4), ("tune", 6)]
    assert [r.loss for r in train] == [r["loss"] for r in read_metrics(tmp_path / "run", "train")]
    assert all(r.tokens_per_second > r.samples_per_second > 0 and 0 <= r.data_wait <= 1 for r in train)
    assert [e.name for e in listener.ends] == ["align", "tune"]
    assert listener.ends[1].validation_loss == [r.loss for r in listener.reports if r.kind == "validation"][-1]
    assert listener.closed == 1


def test_validation_does_not_change_training(tmp_path):
    losses = []
    for name, every in (("with", 1), ("without", None)):
        run = recipe(validation=Squares.Config(size=8)) if every else recipe()
        Trainer(run, tmp_path / name, tokenizer=tokenizer(), validate_every=every).fit()
        losses.append([r["loss"] for r in read_metrics(tmp_path / name, "train")])
    assert losses[0] == losses[1]


class Counted(SoftmaxContrastive):
    """Notes how many pairs each forward compares, and whether it trains."""

    @dataclass(frozen=True, kw_only=True)
    class Config(SoftmaxContrastive.Config):
        def build(self):
            return Counted(self)

    seen: ClassVar[list[tuple[bool, int]]] = []

    def forward(self, system, batch):
        self.seen.append((self.training, len(batch.samples)))
        return super().forward(system, batch)


def test_in_batch_negatives_are_validated_in_whole_batches(tmp_path):
    stage = tiny_recipe("clip").stages[0]
    captions = replace(stage.data, split="validation")
    stage = replace(stage, steps=2, batch_size=4, validation=captions, objective=Counted.Config())
    run = replace(tiny_recipe("clip"), stages=(stage,))
    Counted.seen.clear()
    Trainer(run, tmp_path / "run", tokenizer=tiny_tokenizer(50), validation_samples=10).fit()
    assert Counted.seen == [(True, 4), (True, 4), (False, 4), (False, 4)]


def test_a_few_steps_lower_the_loss(tmp_path):
    Trainer(recipe(steps=25), tmp_path / "run", tokenizer=tokenizer()).fit()
    tune = [r["loss"] for r in read_metrics(tmp_path / "run", "train") if r["stage"] == "tune"]
    assert sum(tune[-3:]) < 0.8 * sum(tune[:3])


def test_tensorboard_is_written_when_asked_for(tmp_path):
    pytest.importorskip("tensorboard")
    Trainer(recipe(steps=1), tmp_path / "run", tokenizer=tokenizer(), tensorboard=True).fit()
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_a_run_goes_on_without_tensorboard_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    Trainer(recipe(steps=1), tmp_path / "run", tokenizer=tokenizer(), tensorboard=True).fit()
    assert "tensorboard is not installed" in (tmp_path / "run" / "log.txt").read_text()
    assert len(read_metrics(tmp_path / "run", "train")) == 2


def test_random_generators_are_restored_whole():
    import random

    import numpy

    def draws():
        return [
            torch.rand(3).tolist(),
            random.random(),
            random.gauss(0, 1),
            numpy.random.rand(2).tolist(),
            numpy.random.randn(),
        ]

    seed_everything(0, "test")
    draws()
    state = random_state()
    first = draws()
    set_random_state(state)
    assert draws() == first
    seed_everything(0, "other")
    assert draws() != first
