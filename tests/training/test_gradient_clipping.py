"""Adaptive gradient clipping, by hand and through the optimizer of a stage."""

import pytest
import torch
from torch import nn

from weft.core.errors import ConfigError
from weft.training.gradient_clipping import AdaptiveClipping, unit_norms
from weft.training.optimizers import build_optimizer
from weft.training.stage import Optimizer


def clipped(weight, gradient, factor: float = 0.01) -> torch.Tensor:
    parameter = nn.Parameter(torch.tensor(weight))
    parameter.grad = torch.tensor(gradient)
    AdaptiveClipping({"weight": parameter}, factor).clip()
    return parameter.grad


def test_each_row_of_a_matrix_is_held_to_its_own_weights():
    """Rows (3, 4) and (0, 2) have norms 5 and 2, so at 0.1 their gradients may have 0.5 and 0.2."""
    gradient = clipped([[3.0, 4.0], [0.0, 2.0]], [[6.0, 8.0], [0.1, 0.0]], factor=0.1)
    torch.testing.assert_close(gradient[0], torch.tensor([0.3, 0.4]))  # 10 down to 0.5
    assert torch.equal(gradient[1], torch.tensor([0.1, 0.0]))  # 0.1 is within 0.2


def test_a_vector_and_a_scalar_are_one_unit_each():
    torch.testing.assert_close(clipped([3.0, 4.0], [0.0, 10.0], factor=0.1), torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(clipped(2.0, -1.0, factor=0.1), torch.tensor(-0.2))
    assert clipped([3.0, 4.0], [0.0, 0.5], factor=0.1).tolist() == [0.0, 0.5]  # at the bound


def test_a_weight_with_one_long_axis_is_one_unit():
    column = clipped([[3.0], [4.0]], [[0.0], [10.0]], factor=0.1)
    torch.testing.assert_close(column, torch.tensor([[0.0], [0.5]]))


def test_a_unit_that_starts_at_zero_can_still_move():
    """Its norm counts as 1e-3, so its gradient may have 1e-3 * 0.01."""
    torch.testing.assert_close(clipped([[0.0, 0.0], [1.0, 0.0]], [[3.0, 4.0], [0.0, 0.0]]).norm(), torch.tensor(1e-5))


@pytest.mark.parametrize("shape", [(6, 5), (6, 4, 3, 3), (6, 1, 3, 3)], ids=["matrix", "convolution", "depthwise"])
def test_the_published_rule_holds_output_by_output(shape):
    """|G| / max(|W|, 1e-3) over 0.01 scales to exactly 0.01 of the weights; everything else keeps every bit."""
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(shape))
    before = torch.einsum("r,r...->r...", torch.logspace(-4, 0, 6), torch.randn(shape))
    parameter.grad = before.clone()
    AdaptiveClipping({"weight": parameter}, 0.01).clip()
    over = 0
    for weight, gradient, after in zip(parameter.detach(), before, parameter.grad, strict=True):
        bound = 0.01 * max(float(weight.norm()), 1e-3)
        if float(gradient.norm()) > bound:
            over += 1
            torch.testing.assert_close(after, gradient * bound / gradient.norm(), rtol=1e-5, atol=0)  # float32 norms
        else:
            assert torch.equal(after, gradient)
    assert 0 < over < 6  # both sides of the rule were met


def test_norms_of_reduced_precision_are_taken_in_float32():
    weight = torch.full((2, 4096), 1.0, dtype=torch.bfloat16)
    assert unit_norms(weight).dtype == torch.float32
    assert unit_norms(weight).flatten().tolist() == [64.0, 64.0]


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 8, 3)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.norm(torch.relu(self.convolution(x)).mean((2, 3))))


def gradients(model: Classifier, step: int) -> None:
    pixels = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(step))
    model.zero_grad()
    nn.functional.cross_entropy(30 * model(pixels), torch.arange(4)).backward()


def trained(model: Classifier) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters())


AGC = Optimizer(learning_rate=1e-2, adaptive_clip=0.01, adaptive_clip_except=("head.*",), clip_norm=None)


def test_the_final_linear_layer_is_left_alone_and_the_rest_is_clipped():
    model = Classifier()
    optimizer = build_optimizer(AGC, model, trained(model))
    gradients(model, 0)
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    norm = optimizer.clip()
    assert norm == pytest.approx(float(torch.cat([g.flatten() for g in before.values()]).norm()), rel=1e-5)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, before[name]) == name.startswith("head")
        if not name.startswith("head"):
            bound = 0.01 * unit_norms(parameter.detach()).clamp_min(1e-3)
            assert (unit_norms(parameter.grad) <= bound * (1 + 1e-5)).all()  # float32 rounding of the norm


def test_the_norm_of_all_gradients_is_bounded_after_the_units_were():
    model = Classifier()
    optimizer = build_optimizer(Optimizer(adaptive_clip=0.01, clip_norm=0.02), model, trained(model))
    plain = build_optimizer(Optimizer(adaptive_clip=0.01, clip_norm=None), model, trained(model))
    gradients(model, 0)
    plain.clip()
    units = torch.cat([p.grad.flatten() for p in model.parameters()])
    gradients(model, 0)
    optimizer.clip()
    both = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert units.norm() > 0.02
    torch.testing.assert_close(both, units * 0.02 / units.norm(), rtol=1e-4, atol=0)  # clipping adds 1e-6 to the norm


def test_without_it_gradients_are_what_they_were():
    model = Classifier()
    optimizer = build_optimizer(Optimizer(clip_norm=None), model, trained(model))
    gradients(model, 0)
    before = [p.grad.clone() for p in model.parameters()]
    optimizer.clip()
    assert all(torch.equal(p.grad, old) for p, old in zip(model.parameters(), before, strict=True))


def test_a_parameter_without_a_gradient_is_passed_over():
    model = Classifier()
    optimizer = build_optimizer(AGC, model, trained(model))
    gradients(model, 0)
    model.convolution.weight.grad = None
    optimizer.clip()
    assert model.convolution.weight.grad is None and model.convolution.bias.grad is not None


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path):
    def run(model, optimizer, steps):
        for step in steps:
            gradients(model, step)
            optimizer.clip()
            optimizer.step(1.0)

    straight, first, second = Classifier(), Classifier(), Classifier()
    run(straight, build_optimizer(AGC, straight, trained(straight)), range(6))
    optimizer = build_optimizer(AGC, first, trained(first))
    run(first, optimizer, range(3))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(first.state_dict())
    resumed = build_optimizer(AGC, second, trained(second))
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    run(second, resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), second.parameters(), strict=True))


def test_a_factor_or_pattern_that_means_nothing_is_refused():
    model = Classifier()
    with pytest.raises(ConfigError, match=r"adaptive_clip is a positive factor, got 0\.0"):
        build_optimizer(Optimizer(adaptive_clip=0.0), model, trained(model))
    with pytest.raises(ConfigError, match=r"adaptive_clip_except: pattern 'hed\.\*' matches no parameter"):
        build_optimizer(Optimizer(adaptive_clip=0.01, adaptive_clip_except=("hed.*",)), model, trained(model))
