"""Every recipe, killed twice in each of its stages, ends in the weights of the run that nothing stopped, bit for bit."""

from dataclasses import replace

import pytest
import torch
from tiny_training import Strike, losses

from weft.recipes.catalogue import tiny_names, tiny_recipe
from weft.recipes.shrinking import tiny_tokenizer
from weft.training.model_folder import read_weights
from weft.training.trainer import Trainer

STEPS = 3


class Crash(Exception):
    pass


def crash():
    raise Crash


def shortened(name):
    made = tiny_recipe(name)
    return replace(made, stages=tuple(replace(stage, steps=STEPS) for stage in made.stages))


pytestmark = pytest.mark.usefixtures("one_thread")  # sums depend on how they are split


@pytest.mark.parametrize("name", tiny_names())
def test_a_killed_run_resumes_bit_for_bit(name, tmp_path):
    made, tokenizer = shortened(name), tiny_tokenizer(100)

    def fit(folder, *strikes, resume=False):
        options = {"checkpoint_every": 2, "checkpoint_seconds": 1e9, "callbacks": strikes}
        return Trainer(made, tmp_path / folder, tokenizer=tokenizer, **options).fit(resume=resume)

    straight = fit("straight")
    resume = False
    for stage in range(len(made.stages)):
        # A crash after a stage's first step takes it up from the stage before, one after its last from the second step.
        for steps in (1 if stage == 0 else 2, STEPS):
            with pytest.raises(Crash):
                fit("killed", Strike(steps, crash), resume=resume)
            resume = True
    killed = fit("killed", resume=True)

    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")
    assert len(losses(tmp_path / "killed")) == STEPS * len(made.stages)
    ours, theirs = (read_weights(folder / "model.safetensors") for folder in (killed, straight))
    assert ours.keys() == theirs.keys()
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []
