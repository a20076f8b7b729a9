import math

import pytest
import torch
from torch import nn

from weft.core.errors import ConfigError
from weft.training.lamb import Lamb
from weft.training.optimizers import build_optimizer
from weft.training.stage import Optimizer

BETAS, EPSILON, DECAY, RATE = (0.9, 0.98), 1e-6, 0.05, 0.1


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.position_embedding = nn.Parameter(torch.full((2, 2), 0.5))
        self.up = nn.Linear(2, 2)


def model():
    torch.manual_seed(0)
    return Model()


def gradients(system, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in system.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def by_hand(weights, gradients_by_step, decay):
    """LAMB on a list of numbers, one after the other."""
    first, second = [0.0] * len(weights), [0.0] * len(weights)
    for step, gradient in enumerate(gradients_by_step, start=1):
        first = [BETAS[0] * m + (1 - BETAS[0]) * g for m, g in zip(first, gradient, strict=True)]
        second = [BETAS[1] * v + (1 - BETAS[1]) * g * g for v, g in zip(second, gradient, strict=True)]
        direction = [
            m / (1 - BETAS[0] ** step) / (math.sqrt(v / (1 - BETAS[1] ** step)) + EPSILON)
            for m, v in zip(first, second, strict=True)
        ]
        ratio = 1.0
        if decay:
            direction = [d + decay * w for d, w in zip(direction, weights, strict=True)]
            ratio = math.hypot(*weights) / math.hypot(*direction)
        weights = [w - RATE * ratio * d for w, d in zip(weights, direction, strict=True)]
    return weights


def test_a_first_step_worked_out():
    """At the first step Adam's direction is the gradient's sign, (1, -1) of length sqrt 2; the weights (3, 4) have length 5."""
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    weight.grad = torch.tensor([[0.2, -7.0]])
    lamb = Lamb({"w": weight}, betas=BETAS, epsilon=0.0, weight_decay=1e-30)
    lamb.step(RATE)
    move = 0.1 * 5 / math.sqrt(2)
    assert weight.data.tolist()[0] == pytest.approx([3 - move, 4 + move], rel=1e-6)


def test_three_steps_equal_those_by_hand():
    system = model()
    start = {name: p.detach().flatten().tolist() for name, p in system.named_parameters()}
    lamb = Lamb(
        dict(system.named_parameters()), betas=BETAS, epsilon=EPSILON, weight_decay=DECAY, undecayed={"position_embedding"}
    )
    seen = {name: [] for name in start}
    for step in range(3):
        gradients(system, step)
        for name, parameter in system.named_parameters():
            seen[name].append(parameter.grad.flatten().tolist())
        lamb.step(RATE)
    for name, parameter in system.named_parameters():
        expected = by_hand(start[name], seen[name], DECAY if name == "up.weight" else 0.0)
        assert parameter.detach().flatten().tolist() == pytest.approx(expected, abs=1e-6)  # float32 against float64


def test_a_decayed_parameter_moves_by_its_own_size_whatever_the_gradients_size():
    moved = []
    for scale in (1e-3, 1.0, 1e3):
        system = model()
        before = system.up.weight.detach().clone()
        gradients(system, 0)
        system.up.weight.grad *= scale
        Lamb(dict(system.named_parameters()), weight_decay=DECAY, epsilon=1e-12).step(RATE)
        moved.append((system.up.weight - before).norm() / before.norm())
    assert torch.allclose(torch.stack(moved), torch.tensor(RATE), rtol=1e-5)


def test_weights_of_zero_take_adams_step():
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.tensor([[1.0, -2.0], [3.0, -4.0]])
    Lamb({"w": weight}, weight_decay=DECAY).step(RATE)
    assert torch.allclose(weight.data, -RATE * weight.grad.sign(), atol=1e-6)


def test_a_direction_of_zero_moves_nothing_and_is_no_nan():
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.zeros(2, 2)
    Lamb({"w": weight}, weight_decay=DECAY).step(RATE)
    assert torch.equal(weight.data, torch.zeros(2, 2))


CONFIG = Optimizer(
    name="lamb", learning_rate=RATE, weight_decay=DECAY, weight_decay_except=("position*",), rates={"up.bias": 0.0}
)


def test_a_stage_names_it_with_rates_and_what_is_not_decayed():
    system = model()
    optimizer = build_optimizer(CONFIG, system, dict(system.named_parameters()))
    assert optimizer.adamw is None and optimizer.muon is None
    decayed = {name for (decay, _), names in optimizer.lamb.groups.items() if decay for name in names}
    assert decayed == {"up.weight"}
    bias = system.up.bias.detach().clone()
    gradients(system, 0)
    system.up.weight.grad, weight = None, system.up.weight.detach().clone()
    optimizer.step(0.5)
    assert torch.equal(system.up.bias, bias), "its rate is zero"
    assert torch.equal(system.up.weight, weight), "it has no gradient"
    assert torch.allclose(system.position_embedding, 0.5 - 0.5 * RATE * system.position_embedding.grad.sign(), atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon"])
def test_no_optimizer_decays_what_a_pattern_leaves_out(name):
    moved = {}
    for left_out in ((), ("*",)):
        system = model()
        config = Optimizer(name=name, weight_decay=0.9, weight_decay_except=left_out, matrices=("up*",))
        optimizer = build_optimizer(config, system, dict(system.named_parameters()))
        for parameter in system.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step(1.0)
        fresh = model()
        moved[left_out] = not all(torch.equal(a, b) for a, b in zip(system.parameters(), fresh.parameters(), strict=True))
    assert moved == {(): True, ("*",): False}


def test_a_pattern_of_undecayed_parameters_must_match():
    system = model()
    with pytest.raises(ConfigError, match="weight_decay_except"):
        build_optimizer(Optimizer(weight_decay_except=("bloks.*",)), system, dict(system.named_parameters()))


def test_state_resumes_bit_for_bit(tmp_path):
    straight, first, second = model(), model(), model()
    whole = build_optimizer(CONFIG, straight, dict(straight.named_parameters()))
    half = build_optimizer(CONFIG, first, dict(first.named_parameters()))
    for step in range(6):
        gradients(straight, step)
        whole.step(0.5)
    for step in range(3):
        gradients(first, step)
        half.step(0.5)
    torch.save(half.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(first.state_dict())
    resumed = build_optimizer(CONFIG, second, dict(second.named_parameters()))
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(3, 6):
        gradients(second, step)
        resumed.step(0.5)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), second.parameters(), strict=True))
