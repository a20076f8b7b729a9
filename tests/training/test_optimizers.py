import pytest
import torch
from torch import nn

from weft.core.errors import ConfigError, RunError
from weft.training.adamw import AdamW
from weft.training.muon import Muon, orthogonalise
from weft.training.optimizers import build_optimizer, muon_names
from weft.training.stage import Optimizer


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 24)
        self.down = nn.Linear(24, 8)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.output = nn.Linear(8, 16, bias=False)

    def forward(self, tokens):
        hidden = self.embedding(tokens)
        for block in self.blocks:
            hidden = hidden + block.down(torch.relu(block.up(block.norm(hidden))))
        return self.output(hidden)


def model():
    torch.manual_seed(0)
    return Model()


def gradients(model, step):
    model.zero_grad()
    tokens = torch.arange(6).reshape(2, 3) + step
    model(tokens).square().mean().backward()


def train(model, optimizer, steps):
    for step in steps:
        gradients(model, step)
        optimizer.step(0.5)


MUON = Optimizer(name="muon", learning_rate=1e-2, matrix_rate=0.02, weight_decay=0.1)


def test_orthogonalise_brings_singular_values_near_one():
    torch.manual_seed(0)
    matrices = torch.randn(3, 48, 128) @ torch.diag(torch.logspace(-1, 1, 128))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert torch.linalg.cond(matrices).min() > 5
    assert values.min() > 0.6, "five steps bring every value above 0.6 of 1 from a condition number of tens"
    assert values.max() < 1.3, "the quintic overshoots to about 1.2"


def test_orthogonalise_keeps_singular_vectors():
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(16, 16))
    right, _ = torch.linalg.qr(torch.randn(32, 32))
    matrix = left @ torch.diag(torch.linspace(1, 2, 16)) @ right[:16]
    rotated = left.T @ orthogonalise(matrix[None])[0] @ right[:16].T
    off_diagonal = rotated - torch.diag(rotated.diagonal())
    assert off_diagonal.abs().max() < 1e-5  # fp32 rounding over 15 products


def test_muon_takes_hidden_matrices_and_leaves_the_rest_to_adamw():
    system = model()
    names = muon_names(MUON, system, dict(system.named_parameters()))
    assert names == [f"blocks.{i}.{layer}.weight" for i in (0, 1) for layer in ("up", "down")]
    optimizer = build_optimizer(MUON, system, dict(system.named_parameters()))
    assert set(optimizer.adamw.parameters) == set(dict(system.named_parameters())) - set(names)


def test_stacked_matrices_move_as_each_would_alone():
    together, alone = model(), model()
    names = muon_names(MUON, together, dict(together.named_parameters()))
    by_name = dict(alone.named_parameters())
    whole = Muon({n: p for n, p in together.named_parameters() if n in names}, weight_decay=0.1)
    single = [Muon({n: by_name[n]}, weight_decay=0.1) for n in names]
    for step in range(3):
        gradients(together, step)
        gradients(alone, step)
        whole.step(0.02)
        for muon in single:
            muon.step(0.02)
    for name, parameter in together.named_parameters():
        assert torch.allclose(parameter, by_name[name], atol=1e-6)  # batched and single products round apart


def test_muon_scales_tall_matrices_by_the_root_of_their_aspect():
    up, down = nn.Parameter(torch.zeros(24, 8)), nn.Parameter(torch.zeros(8, 24))
    torch.manual_seed(0)
    up.grad = torch.randn(24, 8)
    down.grad = up.grad.T.clone()
    Muon({"up": up, "down": down}).step(1.0)
    assert torch.allclose(up.data, down.data.T * 3**0.5, atol=1e-6)


def test_adamw_equals_the_reference_optimizer():
    ours, theirs = model(), model()
    adamw = AdamW(dict(ours.named_parameters()), betas=(0.9, 0.95), weight_decay=0.1)
    matrices = [p for p in theirs.parameters() if p.ndim >= 2]
    vectors = [p for p in theirs.parameters() if p.ndim < 2]
    reference = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=1e-2, betas=(0.9, 0.95)
    )
    for step in range(4):
        gradients(ours, step)
        gradients(theirs, step)
        adamw.step(1e-2)
        reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)  # the fused kernel orders its products otherwise


@pytest.mark.parametrize("config", [MUON, Optimizer(learning_rate=1e-2, weight_decay=0.1)], ids=["muon", "adamw"])
def test_state_resumes_bit_for_bit(config, tmp_path):
    straight, first = model(), model()
    train(straight, build_optimizer(config, straight, dict(straight.named_parameters())), range(6))
    optimizer = build_optimizer(config, first, dict(first.named_parameters()))
    train(first, optimizer, range(3))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")

    second = model()
    second.load_state_dict(first.state_dict())
    resumed = build_optimizer(config, second, dict(second.named_parameters()))
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    train(second, resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), second.parameters(), strict=True))


def test_state_of_another_optimizer_is_refused():
    system = model()
    named = dict(system.named_parameters())
    state = build_optimizer(Optimizer(), system, named).state_dict()
    with pytest.raises(RunError, match="another optimizer than 'muon'"):
        build_optimizer(MUON, system, named).load_state_dict(state)
    fewer = {n: p for n, p in named.items() if n.startswith("blocks")}
    with pytest.raises(RunError, match=r"embedding\.weight"):
        build_optimizer(Optimizer(), system, fewer).load_state_dict(state)


def test_rate_factors_by_name_scale_the_step():
    plain, scaled = model(), model()
    config = Optimizer(learning_rate=1e-2, rates={"*blocks.1*": 0.1, "embedding.*": 0.0})
    for system, optimizer in ((plain, Optimizer(learning_rate=1e-2)), (scaled, config)):
        train(system, build_optimizer(optimizer, system, dict(system.named_parameters())), [0])
    start, one, other = (dict(m.named_parameters()) for m in (model(), plain, scaled))
    assert torch.equal(other["embedding.weight"], start["embedding.weight"])
    assert torch.equal(other["blocks.0.up.weight"], one["blocks.0.up.weight"])
    moved = (one["blocks.1.up.weight"] - start["blocks.1.up.weight"]) * 0.1
    assert torch.allclose(other["blocks.1.up.weight"] - start["blocks.1.up.weight"], moved, atol=1e-7)


def test_a_rate_pattern_must_match():
    system = model()
    with pytest.raises(ConfigError, match=r"'bloks\.\*' matches no trained parameter"):
        build_optimizer(Optimizer(rates={"bloks.*": 0.1}), system, dict(system.named_parameters()))


@pytest.mark.parametrize("config", [MUON, Optimizer()], ids=["muon", "adamw"])
def test_a_parameter_without_a_gradient_stays(config):
    system = model()
    optimizer = build_optimizer(config, system, dict(system.named_parameters()))
    train(system, optimizer, [0])
    before = system.blocks[0].up.weight.detach().clone()
    gradients(system, 1)
    system.blocks[0].up.weight.grad = None
    optimizer.step(1.0)
    assert torch.equal(system.blocks[0].up.weight, before)


def test_clipping_bounds_the_norm_of_all_gradients_together():
    system = model()
    optimizer = build_optimizer(Optimizer(clip_norm=0.01), system, dict(system.named_parameters()))
    gradients(system, 0)
    before = torch.cat([p.grad.flatten() for p in system.parameters()])
    norm = optimizer.clip()
    after = torch.cat([p.grad.flatten() for p in system.parameters()])
    assert norm == pytest.approx(float(before.norm()), rel=1e-5)
    assert float(after.norm()) == pytest.approx(0.01, rel=1e-3)
    assert torch.allclose(after / after.norm(), before / before.norm(), atol=1e-6)


def tower():
    """A tower within a system: embedding, two blocks and what follows them, beside a parameter of no tower."""
    torch.manual_seed(0)
    system = nn.Module()
    system.tower = Model()
    system.scale = nn.Parameter(torch.ones(()))
    return system


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_layer_decay_lowers_the_rate_from_the_top_down(name):
    """Adam's first step is as long as the rate, so what each parameter moved by shows its rate."""
    system = tower()
    config = Optimizer(name=name, learning_rate=0.1, layer_decay={"tower": 0.5}, rates={"tower.*": 0.4}, epsilon=1e-12)
    optimizer = build_optimizer(config, system, dict(system.named_parameters()))
    before = {n: p.detach().clone() for n, p in system.named_parameters()}
    for parameter in system.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(1.0)
    moved = {n: (before[n] - p.detach()).mean().item() for n, p in system.named_parameters()}
    expected = {"tower.embedding.": 0.04 / 8, "tower.blocks.0.": 0.04 / 4, "tower.blocks.1.": 0.04 / 2, "tower.output.": 0.04}
    for prefix, rate in {**expected, "scale": 0.1}.items():
        rates = [step for n, step in moved.items() if n.startswith(prefix)]
        assert rates == pytest.approx([rate] * len(rates), rel=1e-4) and rates, prefix


def test_layer_decay_of_what_is_no_tower_is_refused():
    system = tower()
    with pytest.raises(ConfigError, match="layer_decay: 'media' has no trained blocks"):
        build_optimizer(Optimizer(layer_decay={"media": 0.5}), system, dict(system.named_parameters()))
    with pytest.raises(ConfigError, match=r"layer_decay of 'tower' multiplies rates and lies above 0, at most 1, got 1\.5"):
        Optimizer(layer_decay={"tower": 1.5})
