"""The key-map engine: every rule both ways, every fault in one error."""

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from weft.checkpoints.key_map import KeyMap
from weft.checkpoints.patterns import collapse
from weft.checkpoints.rules import (
    Index,
    concatenate,
    pad_rows,
    permute_rows,
    read_only,
    rename,
    shift,
    split,
    squeeze,
    take_rows,
    transpose,
)
from weft.checkpoints.skeleton import skeleton
from weft.core.errors import CheckpointError, ConfigError


def numbers(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


def pairs_to_halves(rows: int) -> torch.Tensor:
    """The order that turns interleaved rotary pairs into halves."""
    return torch.arange(rows).view(-1, 2).T.flatten()


BOTH_WAYS = {
    "rename": (rename("a", "b"), {"a.weight": numbers(2, 3)}, {"b.weight": numbers(2, 3)}),
    "rename with indices": (
        rename("h.{i}.x.{j}", "b.{j}.y.{i}"), {"h.3.x.10.bias": numbers(2)}, {"b.10.y.3.bias": numbers(2)}
    ),
    "rename any text": (rename("old.*", "new.*"), {"old.p.q.0": numbers(2)}, {"new.p.q.0": numbers(2)}),
    "rename with an index function": (
        rename("layers.{i}", "blocks.{i}", shift(-2)), {"layers.2.w": numbers(1)}, {"blocks.0.w": numbers(1)}
    ),
    "split in equal parts": (
        split("qkv", ("q", "k", "v")),
        {"qkv.weight": numbers(6, 2), "qkv.bias": numbers(6)},
        {f"{n}.weight": numbers(6, 2)[2 * i : 2 * i + 2] for i, n in enumerate("qkv")}
        | {f"{n}.bias": numbers(6)[2 * i : 2 * i + 2] for i, n in enumerate("qkv")},
    ),
    "split in given parts": (
        split("qkv", ("q", "k"), dim=1, sizes=(3, 1)),
        {"qkv.weight": numbers(2, 4)},
        {"q.weight": numbers(2, 4)[:, :3], "k.weight": numbers(2, 4)[:, 3:]},
    ),
    "concatenate": (
        concatenate(("gate", "up"), "both"),
        {"gate.weight": numbers(2, 2), "up.weight": numbers(2, 2) + 9},
        {"both.weight": torch.cat((numbers(2, 2), numbers(2, 2) + 9))},
    ),
    "transpose": (transpose("a", "b"), {"a": numbers(2, 3)}, {"b": numbers(2, 3).T}),
    "transpose four axes": (
        transpose("a", "b", (3, 2, 0, 1)), {"a": numbers(2, 3, 4, 5)}, {"b": numbers(2, 3, 4, 5).permute(3, 2, 0, 1)}
    ),
    "squeeze": (squeeze("a", "b", (0, 1)), {"a": numbers(1, 1, 4)}, {"b": numbers(4)}),
    "permute rows": (permute_rows("a", "b", pairs_to_halves), {"a": numbers(4, 1)}, {"b": numbers(4, 1)[[0, 2, 1, 3]]}),
    "take rows": (
        take_rows("a", "b", range(1, 3), of=4),
        {"a": torch.tensor([[0.0], [5.0], [6.0], [0.0]])},
        {"b": torch.tensor([[5.0], [6.0]])},
    ),
    "pad rows": (
        pad_rows("a", "b", 2, to=3), {"a": numbers(2, 2) + 1}, {"b": torch.cat((numbers(2, 2) + 1, torch.zeros(1, 2)))}
    ),
}  # fmt: skip


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("case", BOTH_WAYS)
def test_a_rule_goes_both_ways(case):
    rule, source, target = BOTH_WAYS[case]
    assert_same(KeyMap([rule]).to_weft(source), target)
    assert_same(KeyMap([rule]).from_weft(target), source)


@pytest.mark.parametrize("case", BOTH_WAYS)
def test_a_rule_holds_under_prefixes(case):
    rule, source, target = BOTH_WAYS[case]
    nested = KeyMap.join(KeyMap([rule]).under("file.part.", "model.part."), KeyMap(rename={"rest": "rest"}))
    there = {f"file.part.{key}": value for key, value in source.items()} | {"rest": numbers(1)}
    here = {f"model.part.{key}": value for key, value in target.items()} | {"rest": numbers(1)}
    assert_same(nested.to_weft(there), here)
    assert_same(nested.from_weft(here), there)


sizes = st.integers(1, 5)


@settings(max_examples=30, deadline=None)
@given(st.lists(sizes, min_size=1, max_size=4), sizes, st.integers(0, 1))
def test_split_then_concatenate_is_the_identity(parts, width, dim):
    shape = (sum(parts), width) if dim == 0 else (width, sum(parts))
    names = [f"p{n}" for n in range(len(parts))]
    table = KeyMap([split("whole", names, dim, parts)])
    assert_same(table.from_weft(table.to_weft({"whole": numbers(*shape)})), {"whole": numbers(*shape)})
    joined = KeyMap([concatenate(names, "whole", dim, parts)])
    assert_same(joined.to_weft(table.to_weft({"whole": numbers(*shape)})), {"whole": numbers(*shape)})


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(6)), st.permutations(range(3)))
def test_any_order_of_rows_and_axes_comes_back(rows, axes):
    table = KeyMap([permute_rows("r", "r", lambda n: torch.tensor(rows)), transpose("t", "t", tuple(axes))])
    state = {"r": numbers(6, 2), "t": numbers(2, 3, 4)}
    assert_same(table.from_weft(table.to_weft(state)), state)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_taken_rows_padded_back_and_padded_rows_taken_back(data):
    of = data.draw(st.integers(1, 8))
    start = data.draw(st.integers(0, of - 1))
    stop = data.draw(st.integers(start + 1, of))
    part = numbers(stop - start, 2) + 1
    taken = KeyMap([take_rows("a", "a", range(start, stop), of)])
    assert_same(taken.to_weft(taken.from_weft({"a": part})), {"a": part})
    assert taken.from_weft({"a": part})["a"].sum() == part.sum()
    padded = KeyMap([pad_rows("a", "a", stop, to=of)])
    assert_same(padded.from_weft(padded.to_weft({"a": numbers(stop, 2)})), {"a": numbers(stop, 2)})


def test_an_index_function_claims_only_the_indices_that_come_back():
    even, odd = (
        Index(lambda i: i // 2 if i % 2 == 0 else -1, lambda i: 2 * i),
        Index(lambda i: i // 2 if i % 2 else -1, lambda i: 2 * i + 1),
    )
    table = KeyMap([rename("h.{i}.w", "plain.{i}.w", even), rename("h.{i}.w", "cross.{i}.w", odd)])
    source = {f"h.{i}.w": numbers(1) + i for i in range(4)}
    found = table.to_weft(source)
    assert set(found) == {"plain.0.w", "plain.1.w", "cross.0.w", "cross.1.w"}
    assert_same(table.from_weft(found), source)


def test_the_most_literal_rule_wins_and_a_draw_is_a_fault_of_the_table():
    table = KeyMap(rename={"*": "rest.*", "a.{i}": "blocks.{i}", "a.0": "first"})
    assert set(table.to_weft({"a.0.w": numbers(1), "a.1.w": numbers(1), "z": numbers(1)})) == {
        "first.w",
        "blocks.1.w",
        "rest.z",
    }
    with pytest.raises(ConfigError, match="two rules"):
        KeyMap([rename("a", "b"), rename("a", "c")]).to_weft({"a": numbers(1)})


def test_spellings_are_tried_until_the_table_knows_the_key():
    table = KeyMap(rename={"vision.x": "x", "head": "head"}, spellings=[("model.", ""), ("", "vision.")])
    for key in ("vision.x", "x", "model.x", "model.vision.x"):
        assert set(table.to_weft({key: numbers(1)})) == {"x"}, key
    assert set(table.to_weft({"head": numbers(1)})) == {"head"}
    with pytest.raises(CheckpointError, match=r"model\.x and x are two spellings of one key"):
        table.to_weft({"model.x": numbers(1), "x": numbers(1)})


def test_read_only_rules_read_another_spelling_and_never_write_it():
    """A spelling may differ by a name in the middle, or by how tensors are grouped."""
    older = read_only(split("mlp.in", ("gate", "up")), rename("attention.attention.query", "query"))
    table = KeyMap((rename("mlp.gate", "gate"), rename("mlp.up", "up"), rename("attention.q_proj", "query"), *older))
    table = KeyMap.join(table.under("model.", "tower."))
    ours = {"tower.gate.weight": numbers(2, 2), "tower.up.weight": numbers(2, 2) + 4, "tower.query.bias": numbers(2)}
    written = table.from_weft(ours)
    assert set(written) == {"model.mlp.gate.weight", "model.mlp.up.weight", "model.attention.q_proj.bias"}
    spelled = {"model.mlp.in.weight": numbers(4, 2), "model.attention.attention.query.bias": numbers(2)}
    for upstream in (written, spelled):
        found = table.to_weft(upstream)
        assert found.keys() == ours.keys() and all(torch.equal(found[key], ours[key]) for key in ours)
    model = nn.Module()
    model.query = nn.Linear(2, 2, bias=False)
    both = {name: numbers(2, 2) for name in ("attention.q_proj.weight", "attention.attention.query.weight")}
    with pytest.raises(CheckpointError, match=r"all become the model's query\.weight"):
        KeyMap((rename("attention.q_proj", "query"), *older)).load(model, both)


def test_a_dropped_key_needs_a_reason_and_is_reported_with_it():
    model = nn.Linear(2, 2)
    table = KeyMap(rename={"*": "*"}, drop={"steps.{i}": "a counter of the training run"})
    assert table.load(model, model.state_dict() | {"steps.4": numbers(1)}) == {"steps.4": "a counter of the training run"}
    with pytest.raises(ConfigError, match=r"steps\.\{i\}"):
        KeyMap(drop={"steps.{i}": " "})


def test_a_rule_must_bind_the_same_indices_on_both_ends():
    with pytest.raises(ConfigError, match="different indices"):
        KeyMap(rename={"h.{i}.w": "w"})


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(2, 3) for _ in range(4))
        self.query, self.key = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)


SMALL = KeyMap([split("attn.qk", ("query", "key"))], rename={"layers.{i}": "blocks.{i}"}, drop={"ids": "a buffer"})


def test_one_error_lists_everything_that_does_not_fit_and_nothing_is_changed():
    model = Small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = SMALL.from_weft(model.state_dict()) | {"layers.0.bias": torch.ones(5), "attn.qk.weight": torch.ones(3, 2)}
    state |= {"layers.9.weight": numbers(3, 2), "strange": numbers(1), "layers.0.weight": torch.full((3, 2), 7.0)}
    for number in (1, 2, 3):
        del state[f"layers.{number}.bias"]
    with pytest.raises(CheckpointError) as caught:
        SMALL.load(model, state, "folder/model.safetensors")
    message = str(caught.value)
    assert message.startswith("folder/model.safetensors does not fit Small: ")
    assert "3 missing (layers.{1..3}.bias)" in message
    assert "2 unknown (strange, layers.9.weight)" in message
    assert "2 wrong shape (" in message
    assert "layers.0.bias (5,): the model's blocks.0.bias is (3,)" in message
    assert "attn.qk.weight (3, 2): dimension 0 of (3, 2) does not divide into 2 equal parts" in message
    assert "\n" not in message
    assert_same(model.state_dict(), before)


def test_an_incomplete_group_is_missing_and_an_unwritten_parameter_is_named():
    table = KeyMap([concatenate(("q", "k"), "weight", 0)])
    model = nn.Linear(2, 4)
    with pytest.raises(CheckpointError, match=r"2 missing \(k, the model's bias, which no rule writes\)"):
        table.load(model, {"q": numbers(2, 2)})


def test_two_keys_for_one_parameter_are_a_conflict():
    table = KeyMap(rename={"a": "weight", "b": "weight", "bias": "bias"})
    with pytest.raises(CheckpointError, match="a, b all become the model's weight"):
        table.load(nn.Linear(1, 1), {"a": numbers(1, 1), "b": numbers(1, 1), "bias": numbers(1)})


def test_maps_without_a_model_are_strict_too():
    with pytest.raises(CheckpointError, match=r"1 unknown \(strange\)"):
        SMALL.to_weft({"strange": numbers(1)})
    with pytest.raises(CheckpointError, match=r"1 missing \(key\.weight\)"):
        SMALL.from_weft({"query.weight": numbers(2, 2)})
    with pytest.raises(CheckpointError, match="wrong shape"):
        SMALL.to_weft({"attn.qk.weight": numbers(3, 2)})


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.output = nn.Embedding(3, 2), nn.Linear(2, 3, bias=False)
        self.output.weight = self.embedding.weight


@pytest.mark.parametrize("given", [("embedding.weight",), ("output.weight",), ("embedding.weight", "output.weight")])
def test_a_tied_tensor_may_be_given_under_any_of_its_names(given):
    with skeleton():
        model = Tied()
    KeyMap(rename={"*": "*"}).load(model, dict.fromkeys(given, numbers(3, 2)))
    assert model.output.weight is model.embedding.weight
    assert torch.equal(model.output.weight, numbers(3, 2))


def test_a_tied_tensor_given_twice_must_be_equal():
    with pytest.raises(CheckpointError, match=r"embedding\.weight and output\.weight differ, but the model ties them"):
        KeyMap(rename={"*": "*"}).load(Tied(), {"embedding.weight": numbers(3, 2), "output.weight": numbers(3, 2) + 1})


def test_a_skeleton_takes_the_precision_of_the_file_or_the_one_asked_for():
    for asked, expected in ((None, torch.float16), (torch.bfloat16, torch.bfloat16)):
        with skeleton():
            model = nn.Linear(2, 3)
        assert model.weight.is_meta
        source = {"weight": numbers(3, 2).half(), "bias": numbers(3).half()}
        KeyMap(rename={"*": "*"}).load(model, source, dtype=asked)
        assert model.weight.dtype == expected and torch.equal(model.weight.float(), numbers(3, 2))
        assert model.weight.data_ptr() != source["weight"].data_ptr()


def test_a_skeleton_keeps_buffers_real_and_ends_with_its_block():
    with skeleton():
        norm = nn.BatchNorm1d(2)
    assert norm.weight.is_meta and not norm.running_mean.is_meta
    assert not nn.Linear(2, 2).weight.is_meta


def test_names_that_differ_in_one_index_are_shown_as_a_range():
    assert collapse([f"blocks.{i}.x" for i in range(32)] + ["head"]) == ["blocks.{0..31}.x", "head"]
    assert collapse(["b.0.x", "b.2.x"]) == ["b.0.x", "b.2.x"]


class CountingState(dict):
    """A file that hands out fresh tensors and counts how many are held at once."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__(shapes)
        self.held = self.most = 0

    def shape(self, key: str) -> tuple[int, ...]:
        return super().__getitem__(key)

    def __getitem__(self, key: str) -> torch.Tensor:
        tensor = torch.ones(self.shape(key))
        self.held += 1
        self.most = max(self.most, self.held)
        weakref.finalize(tensor, self._released)
        return tensor

    def _released(self) -> None:
        self.held -= 1


def test_a_file_is_read_tensor_by_tensor():
    with skeleton():
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(10)))
    state = CountingState({name: tuple(value.shape) for name, value in model.state_dict().items()})
    KeyMap(rename={"*": "*"}).load(model, state)
    assert all(bool((parameter == 1).all()) for parameter in model.parameters())
    assert state.most <= 2  # the one being placed and the one before it
