"""Law: every key of an upstream file is used or dropped with a reason, and every table goes both ways."""

import pytest
import torch

from weft.checkpoints.checkpoint_format import checkpoint_formats, format_of
from weft.checkpoints.weight_files import weights
from weft.core import config as configs
from weft.core.errors import CheckpointError

CASES = [(name, n, tiny) for name, layout in checkpoint_formats().items() for n, tiny in enumerate(layout.tiny())]
every_tiny_model = pytest.mark.parametrize(
    ("name", "tiny"), [(c[0], c[2]) for c in CASES], ids=[f"{c[0]}-{c[1]}" for c in CASES]
)


def test_tables_are_found():
    assert {"clip", "llama", "llava", "siglip"} <= set(checkpoint_formats())


@every_tiny_model
def test_every_parameter_goes_there_and_back_unchanged(name, tiny):
    key_map = checkpoint_formats()[name].key_map(tiny)
    torch.manual_seed(0)
    state = {key: tensor.masked_fill(tensor == 0, 1) for key, tensor in weights(tiny.build()).items()}
    upstream = key_map.from_weft(state)
    plan = key_map.plan(upstream)
    assert plan.dropped == {} and sum(len(step.inputs) for step in plan.steps) == len(upstream)
    # zeros are not counted: a layout may hold constant ones besides (BLIP-2's vision tower has biases of keys)
    assert sum(int(t.count_nonzero()) for t in upstream.values()) == sum(t.numel() for t in state.values())
    back = key_map.to_weft(upstream)
    assert set(back) == set(state)
    assert all(torch.equal(back[key], state[key]) and back[key].dtype == state[key].dtype for key in state)


@every_tiny_model
def test_what_was_written_fills_a_fresh_model_completely(name, tiny):
    key_map = checkpoint_formats()[name].key_map(tiny)
    torch.manual_seed(0)
    first = tiny.build()
    torch.manual_seed(1)
    second = tiny.build()
    assert key_map.load(second, key_map.from_weft(weights(first)), name) == {}
    assert all(torch.equal(value, first.state_dict()[key]) for key, value in second.state_dict().items())


@every_tiny_model
def test_one_key_less_or_more_is_an_error_that_names_it(name, tiny):
    key_map = checkpoint_formats()[name].key_map(tiny)
    model = tiny.build()
    upstream = key_map.from_weft(weights(model))
    lost = sorted(upstream)[len(upstream) // 2]
    short = {key: value for key, value in upstream.items() if key != lost}
    with pytest.raises(CheckpointError) as caught:
        key_map.load(model, short, "short.safetensors")
    assert "1 missing" in str(caught.value) and lost in str(caught.value) and "short.safetensors" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"1 unknown \(a_stranger\)"):
        key_map.load(model, upstream | {"a_stranger": torch.ones(1)})


@every_tiny_model
def test_the_upstream_config_describes_the_same_model(name, tiny):
    layout = checkpoint_formats()[name]
    saved = layout.write_config(tiny)
    assert format_of(saved, "test") is layout
    assert configs.dumps(layout.read_config(saved)) == configs.dumps(tiny)


@pytest.mark.parametrize("name", checkpoint_formats())
def test_every_drop_has_a_reason(name):
    layout = checkpoint_formats()[name]
    for tiny in layout.tiny():
        assert all(len(reason) > 5 for reason in layout.key_map(tiny).drop.values())


def test_an_unknown_model_type_offers_the_known_ones():
    with pytest.raises(CheckpointError, match=r"config\.json has model_type 'gpt_oss'; Weft reads .*llava"):
        format_of({"model_type": "gpt_oss"}, "config.json")
