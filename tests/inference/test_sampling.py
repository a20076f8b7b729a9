import pytest
import torch

from weft.core.errors import ConfigError
from weft.inference.sampling import Sampler, Sampling, kept

DRAWS = 4000


def logits(rows=3, vocabulary=12, seed=0):
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 2


def drawn(row: torch.Tensor, **settings) -> torch.Tensor:
    """How often each token is drawn from one row of logits."""
    sampler = Sampler(Sampling(seed=0, **settings), range(DRAWS))
    tokens = sampler(row.expand(DRAWS, -1), range(DRAWS))
    return torch.bincount(tokens, minlength=len(row)) / DRAWS


def test_temperature_zero_takes_the_likeliest():
    assert torch.equal(Sampler(Sampling(), range(3))(logits(), range(3)), logits().argmax(-1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_follow_the_distribution_at_a_temperature(temperature):
    row = logits()[0]
    expected = torch.softmax(row / temperature, -1)
    deviation = (expected * (1 - expected) / DRAWS).sqrt()
    assert bool(((drawn(row, temperature=temperature) - expected).abs() <= 4.5 * deviation + 1e-9).all())  # 4.5 sigma


@pytest.mark.parametrize("top_k", [1, 3, 7])
def test_top_k_draws_only_the_k_likeliest(top_k):
    row = logits()[1]
    assert set(drawn(row, temperature=2.0, top_k=top_k).nonzero().flatten().tolist()) == set(row.topk(top_k).indices.tolist())


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9])
def test_top_p_keeps_the_fewest_that_reach_p(top_p):
    for row in logits(8, seed=5):
        probabilities, tokens = kept(row[None], Sampling(temperature=1.0, top_p=top_p))
        nucleus = tokens[0][probabilities[0] > 0]
        mass = torch.softmax(row, -1)[nucleus]
        assert float(mass.sum()) >= top_p - 1e-6
        assert float(mass.sum() - mass.min()) < top_p
        outside = torch.ones(len(row), dtype=torch.bool).index_fill(0, nucleus, False)
        assert not outside.any() or float(torch.softmax(row, -1)[outside].max()) <= float(mass.min())


def test_top_k_and_top_p_together_narrow_the_k_likeliest():
    row = torch.tensor([[3.0, 2.9, 2.8, -1.0, -2.0]])
    probabilities, tokens = kept(row, Sampling(temperature=1.0, top_k=3, top_p=0.5))
    assert tokens[0].tolist() == [0, 1, 2] and (probabilities[0] > 0).tolist() == [True, True, False]


def test_a_token_of_probability_zero_is_never_drawn():
    row = torch.full((6,), float("-inf"))
    row[2] = 0.0
    assert drawn(row, temperature=1.0).tolist() == [0, 0, 1, 0, 0, 0]


def test_a_row_draws_the_same_in_any_company():
    settings = Sampling(temperature=1.0, seed=7)
    together, alone = Sampler(settings, [0, 1, 2]), Sampler(settings, [2])
    for seed in range(5):
        values = logits(seed=seed)
        assert int(together(values, [0, 1, 2])[2]) == int(alone(values[2:], [0])[0])


def test_without_a_seed_calls_differ_and_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    row = torch.zeros(1, 10_000)
    drawn = {int(Sampler(Sampling(temperature=1.0), [0])(row, [0])) for _ in range(8)}
    assert len(drawn) > 1
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -0.1}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"max_new_tokens": 0}, {"stop": ("",)}],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong)).removesuffix("s")):
        Sampling(**wrong)
