"""Queries, keys and values by one product: the same numbers, and only where that one product is still theirs."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from weft.core.attention_rule import AttentionRule
from weft.layers.attention import Attention, join_projections
from weft.layers.joined_linear import JoinedLinear, joining_pays
from weft.layers.linear import Linear
from weft.layers.slots import BlockContext

HIDDEN = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
FORMS = {
    "biases": {},
    "no biases": {"input_bias": False},
    "no bias of keys": {"key_bias": False},
    "grouped heads": {"num_key_value_heads": 2, "head_width": 12},
    "normed heads": {"head_norm": nn.LayerNorm},
}
each_form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(autouse=True)
def everywhere(monkeypatch):
    """Also in float32, where numbers can be compared closely and a processor gains nothing."""
    monkeypatch.setattr("weft.layers.attention.joining_pays", lambda weight: True)


def attention(form="biases"):
    torch.manual_seed(0)
    made = Attention(32, 4, **FORMS[form])
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made


def joined(form="biases"):
    made = attention(form)
    join_projections(made)
    return made


def mixed(layer, hidden=HIDDEN, **options):
    return layer(hidden, BlockContext(AttentionRule.causal(*hidden.shape[:2])), **options)


@pytest.fixture
def products(monkeypatch):
    """How many products went through a joined map."""
    calls, product = [], JoinedLinear.__call__

    def counted(self, hidden):
        calls.append(hidden.shape)
        return product(self, hidden)

    monkeypatch.setattr(JoinedLinear, "__call__", counted)
    return calls


@torch.no_grad()
@each_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_same_attention(form, dtype, products):
    expected = mixed(attention(form).to(dtype), HIDDEN.to(dtype))
    assert not products
    for layer in (joined(form).to(dtype), copy.deepcopy(joined(form)).to(dtype)):
        found = mixed(layer, HIDDEN.to(dtype))
        # float32: another order of summation; bfloat16: its last bit at the size of these values
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 2e-2)
    assert len(products) == 2


@torch.no_grad()
def test_one_query_alone_and_one_token(products):
    last = torch.tensor([4, 2])
    torch.testing.assert_close(mixed(joined(), last=last), mixed(attention(), last=last))
    assert not products, "queries of one token, keys of all: not one input"
    torch.testing.assert_close(mixed(joined(), HIDDEN[:, :1]), mixed(attention(), HIDDEN[:, :1]))
    assert len(products) == 1


def test_with_a_gradient_each_weight_gets_its_own(products):
    for layer in (plain := attention(), one := joined()):
        mixed(layer).square().mean().backward()
    assert not products
    for (name, expected), (_, found) in zip(plain.named_parameters(), one.named_parameters(), strict=True):
        assert torch.equal(found.grad, expected.grad), name


@torch.no_grad()
def test_what_an_optimizer_or_a_file_writes_is_read(tmp_path, products):
    layer, other = joined(), attention("biases")
    for parameter in other.parameters():
        parameter.add_(0.1)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    layer.load_state_dict(load_file(tmp_path / "other.safetensors"))
    torch.testing.assert_close(mixed(layer), mixed(other))
    layer.load_state_dict({name: value + 0.1 for name, value in other.state_dict().items()}, assign=True)
    for parameter in other.parameters():
        parameter.add_(0.1)
    torch.testing.assert_close(mixed(layer), mixed(other))
    assert len(products) == 1, "parameters that were assigned have memory of their own"


@torch.no_grad()
def test_a_file_holds_the_parameters_as_ever(tmp_path):
    save_file(joined().state_dict(), tmp_path / "joined.safetensors")
    save_file(attention().state_dict(), tmp_path / "plain.safetensors")
    assert (tmp_path / "joined.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()


@torch.no_grad()
@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_a_map_that_was_replaced_or_is_watched_is_asked_itself(name, products):
    layer, plain = joined(), attention()
    torch.manual_seed(1)
    other = Linear(32, 32)
    for changed in (layer, plain):
        setattr(changed, name, other)
    torch.testing.assert_close(mixed(layer), mixed(plain))
    layer, seen = joined(), []
    getattr(layer, name).register_forward_hook(lambda module, given, result: seen.append(result))
    mixed(layer)
    assert len(seen) == 1 and not products


def test_maps_that_are_not_plain_stay_apart():
    layer = attention()
    layer.key = nn.Sequential(layer.key)
    layer.join()
    assert layer.joined is None


@torch.no_grad()
def test_it_is_done_where_it_pays(monkeypatch):
    monkeypatch.setattr("weft.layers.attention.joining_pays", joining_pays)
    layer = joined()
    assert layer.joined is None, "float32 on a processor"
    assert layer.to(torch.bfloat16).joined is not None
    assert layer.to(torch.float32).joined is None
    assert joined().to("meta").joined is not None, "any accelerator"
