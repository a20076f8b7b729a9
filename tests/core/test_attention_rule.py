"""The rule: who sees whom."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.core.attention_rule import AttentionRule, RuleSide


def test_causal_prefix_and_packing_are_values_of_the_vectors():
    order = torch.tensor([[0, 0, 2, 3, 0, 1]])  # a prefix of two that see each other, two causal; then a second sample
    segment = torch.tensor([[1, 1, 1, 1, 2, 2]])
    expected = torch.tensor(
        [
            [1, 1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [1, 1, 1, 1, 0, 0],
            [0, 0, 0, 0, 1, 0],
            [0, 0, 0, 0, 1, 1],
        ],
        dtype=torch.bool,
    )
    assert torch.equal(AttentionRule(order, segment).allowed[0], expected)


def test_segment_zero_neither_sees_nor_is_seen():
    rule = AttentionRule(torch.arange(4)[None], torch.tensor([[1, 1, 0, 0]]))
    assert not rule.allowed[0, 2:].any() and not rule.allowed[0, :, 2:].any()


def test_a_window_counts_positions_not_indices():
    order = torch.arange(4)[None]
    rule = AttentionRule(order, torch.ones_like(order), position=torch.tensor([[0, 10, 11, 12]]), window=2)
    assert rule.allowed[0].tolist() == [
        [True, False, False, False],
        [False, True, False, False],
        [False, True, True, False],
        [False, False, True, True],
    ]


def test_pattern_names_the_cheapest_exact_description():
    assert AttentionRule.causal(2, 5).pattern == "causal"
    assert AttentionRule.bidirectional(2, 5).pattern == "full"
    ragged = AttentionRule(torch.arange(5).expand(2, 5), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]))
    assert ragged.pattern == "general"
    one = torch.ones(1, 1, dtype=torch.long)
    keys = RuleSide(torch.arange(7)[None], torch.ones(1, 7, dtype=torch.long), torch.arange(7)[None])
    assert AttentionRule(one * 6, one, keys=keys).pattern == "full"


def test_what_the_last_token_of_a_causal_row_sees_is_known_and_every_other_looked_up():
    rule = AttentionRule.causal(2, 5)
    last = rule.of_queries(torch.tensor([4, 4]))
    assert vars(last)["pattern"] == "full" and last.everyone_sees and last.allowed.all()
    earlier = rule.of_queries(torch.tensor([4, 2]))
    assert earlier.pattern == "general" and torch.equal(earlier.allowed[:, 0], rule.allowed[[0, 1], [4, 2]])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_pattern_and_segments_agree_with_the_rule_written_out(data):
    rows, tokens = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 7))
    draw = st.lists(st.integers(0, 3), min_size=rows * tokens, max_size=rows * tokens)
    order = torch.tensor(data.draw(draw)).view(rows, tokens)
    segment = torch.tensor(data.draw(draw)).view(rows, tokens)
    rule = AttentionRule(order, segment)
    if rule.pattern == "full":
        assert rule.allowed.all()
    if rule.pattern == "causal":
        assert torch.equal(rule.allowed, torch.ones(tokens, tokens).tril().bool().expand(rows, tokens, tokens))
    segments = rule.segments
    if segments is not None:
        seen = torch.zeros(rows * tokens, rows * tokens, dtype=torch.bool)
        for index, allowed in zip(segments.tokens, segments.rule.allowed, strict=True):
            real = index >= 0
            seen[index[real][:, None], index[real][None]] = allowed[real][:, real]
        for row in range(rows):
            inside = slice(row * tokens, (row + 1) * tokens)
            assert torch.equal(seen[inside, inside], rule.allowed[row])
        assert seen.sum() == rule.allowed.sum()


@pytest.mark.parametrize(("longest", "padded"), [(5, 5), (32, 32), (33, 64), (64, 64), (65, 96)])
def test_segments_are_padded_to_whole_vectors_beyond_one(longest, padded):
    segment = torch.tensor([[1] * longest + [2] * 3])
    rule = AttentionRule(torch.arange(longest + 3)[None], segment)
    segments = rule.segments
    assert segments is not None
    assert segments.tokens.shape == (2, padded)
    assert (segments.tokens >= 0).sum(1).tolist() == [longest, 3]
