"""What training loses at random: as often as told, by whole samples or whole layers, and nothing in evaluation mode."""

import dataclasses

import pytest
import torch
from torch import nn

from weft.core.attention_rule import AttentionRule
from weft.core.errors import ConfigError
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.encoders.eva_clip import EvaClipVision
from weft.encoders.hubert import Hubert
from weft.layers.branch_dropping import LayerDrop, StochasticDepth, rising_rates
from weft.layers.kernels import attend
from weft.layers.slots import BlockContext
from weft.layers.transformer import pre_norm_blocks, run_blocks
from weft.projectors.qformer import QFormer
from weft.training.randomness import random_state, set_random_state


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_a_sample_loses_the_whole_branch_as_often_as_told_and_the_others_make_up_for_it():
    branch = torch.randn(4000, 3, 2) + 5
    left = StochasticDepth(0.4)(branch)
    lost = (left == 0).flatten(1).all(1)
    torch.testing.assert_close(left[~lost], branch[~lost] / 0.6)
    assert abs(lost.float().mean() - 0.4) < 0.03, "4000 draws: four deviations"
    unscaled = StochasticDepth(0.4, scaled=False)(branch)
    assert torch.equal(unscaled[unscaled[:, 0, 0] != 0], branch[unscaled[:, 0, 0] != 0])


def test_a_layer_is_skipped_by_the_whole_batch_and_its_gradient_is_then_zero():
    before, after = torch.zeros(5, 2), torch.ones(5, 2, requires_grad=True)
    drop, seen = LayerDrop(0.25), []
    for _ in range(500):
        after.grad = None
        chosen = drop(before, after)
        chosen.sum().backward()
        seen.append(chosen.mean().item())
        assert after.grad.unique().tolist() == [seen[-1]], "all rows alike, and the gradient follows"
    assert set(seen) == {0.0, 1.0}
    assert abs(sum(seen) / len(seen) - 0.75) < 0.08, "500 draws: four deviations"


@pytest.mark.parametrize("drop", [StochasticDepth(0.9), LayerDrop(0.9)], ids=lambda drop: type(drop).__name__)
def test_in_evaluation_mode_nothing_is_lost_and_nothing_is_drawn(drop):
    x = torch.randn(8, 3)
    state = torch.get_rng_state()
    drop.eval()
    assert (drop(x) if isinstance(drop, StochasticDepth) else drop(torch.zeros(8, 3), x)) is x
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_is_a_probability(rate):
    for build in (StochasticDepth, LayerDrop):
        with pytest.raises(ConfigError, match="from 0 to below 1"):
            build(rate)
    with pytest.raises(ConfigError, match="stochastic_depth is a probability"):
        dataclasses.replace(EvaClipVision.Config.tiny(), stochastic_depth=rate)
    with pytest.raises(ConfigError, match="layer_drop is a probability"):
        dataclasses.replace(Hubert.Config.tiny(), layer_drop=rate)


def test_attention_loses_probabilities_and_scales_the_rest_up():
    query, key = torch.zeros(1, 2, 64, 50), torch.randn(1, 2, 50, 50)
    value = torch.eye(50).expand(1, 2, 50, 50)  # the output is the probabilities themselves, a fiftieth each
    rule = AttentionRule.of_memory(1, 64, 50)
    left = attend(query, key, value, rule, 0.3)
    assert torch.equal((left == 0) | ((left - 1 / 50 / 0.7).abs() < 1e-6), torch.ones_like(left, dtype=torch.bool))
    assert abs((left == 0).float().mean() - 0.3) < 0.03
    torch.testing.assert_close(attend(query, key, value, rule), torch.full_like(left, 1 / 50))


def test_a_skipped_layer_leaves_the_state_as_it_was():
    blocks = pre_norm_blocks(16, 3, 2, 32, "gelu", 1e-5)
    hidden = torch.randn(2, 5, 16)
    context = BlockContext(AttentionRule.bidirectional(2, 5))
    never, always = LayerDrop(0.5), LayerDrop(0.5)
    never.eval()
    always.rate = 1.1
    assert torch.equal(run_blocks(blocks, hidden, context, layer_drop=never), run_blocks(blocks, hidden, context))
    assert torch.equal(run_blocks(blocks, hidden, context, layer_drop=always), hidden)


def pictures(part):
    units = torch.randn(3, *part.config.unit_shape, generator=torch.Generator().manual_seed(1))
    return part(units, torch.arange(3), (part.config.layout(),) * 3).values


def queries(part):
    features = torch.randn(3, 7, 24, generator=torch.Generator().manual_seed(1))
    return part(MediaFeatures(features, torch.arange(3), (MediaLayout(1, 7),) * 3)).values


EVA = dataclasses.replace(EvaClipVision.Config.tiny(), feature_layer=-1)
EVA_PLAIN, EVA_POST = (dataclasses.replace(EVA, block=block, rotary_side=None) for block in ("pre_norm", "residual_post_norm"))
PARTS = {
    "EVA-01": (EVA_PLAIN, {"stochastic_depth": 0.4}, pictures),
    "EVA-02": (EVA, {"stochastic_depth": 0.4}, pictures),
    "EVA-CLIP-E": (EVA_POST, {"stochastic_depth": 0.4}, pictures),
    "HuBERT": (Hubert.Config.tiny(), {"dropout": 0.1, "layer_drop": 0.05}, pictures),
    "HuBERT before its norms": (dataclasses.replace(Hubert.Config.tiny(), pre_norm=True), {"dropout": 0.1}, pictures),
    "Q-Former": (QFormer.Config.tiny(), {"dropout": 0.1}, queries),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_a_part_trains_with_what_its_config_says_and_is_itself_in_evaluation_mode(name):
    config, rates, run = PARTS[name]
    sizes = (24, 16) if isinstance(config, QFormer.Config) else ()
    with_rates = dataclasses.replace(config, **rates)
    part, plain = with_rates.build(*sizes), config.build(*sizes)
    plain.load_state_dict(part.state_dict())  # the same names: nothing that drops has weights
    assert torch.equal(run(part.eval()), run(plain.eval()))
    assert torch.equal(run(plain.train()), run(plain.eval())), "without rates training changes nothing"

    part.train()
    state = random_state()
    first, second = run(part), run(part)
    assert not torch.equal(first, second)
    set_random_state(state)
    assert torch.equal(run(part), first), "a resumed run draws what the interrupted one would have drawn"


@pytest.mark.parametrize("name", PARTS)
def test_the_gradient_still_reaches_every_parameter(name):
    config, rates, run = PARTS[name]
    part = dataclasses.replace(config, **rates).build(*((24, 16) if isinstance(config, QFormer.Config) else ())).train()
    for _ in range(4):
        values = run(part)
        (values * torch.randn(values.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    plain = config.build(*((24, 16) if isinstance(config, QFormer.Config) else ()))
    values = run(plain)
    (values * torch.randn(values.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    reached = {name for name, p in plain.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {name for name, p in part.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0} >= reached
    assert all(p.grad is None or p.grad.isfinite().all() for p in part.parameters())


def test_published_rates():
    eva, hubert = EvaClipVision.Config.sizes(), Hubert.Config.sizes()
    assert {name: config.stochastic_depth for name, config in eva.items() if config.stochastic_depth} == {"g-14": 0.4}
    with torch.device("meta"):
        blocks = dataclasses.replace(eva["g-14"], num_layers=5).build().blocks
    assert [getattr(block.dropping, "rate", 0.0) for block in blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert rising_rates(0.4, 1) == (0.0,)
    assert (hubert["base"].dropout, hubert["base"].layer_drop) == (0.1, 0.05)
    assert {(hubert[name].dropout, hubert[name].layer_drop) for name in ("large", "x-large")} == {(0.0, 0.0)}
    assert QFormer.Config().dropout == 0.1
    with torch.device("meta"):
        former, speech = QFormer.Config(vocabulary=30_522).build(32, 32), hubert["base"].build()
    dropouts = {part: [m.p for m in part.modules() if isinstance(m, nn.Dropout)] for part in (former, speech)}
    assert dropouts[former] == [0.1] * (1 + 12 + 2 * 12 + 6), "the input; of each block attention, two feed-forwards, six media"
    assert dropouts[speech] == [0.1] * (1 + 2 * 12)
