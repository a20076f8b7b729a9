"""The three patterns of BLIP-2's first stage are the masks of its figure."""

import pytest
import torch

from weft.core.attention_rule import AttentionRule
from weft.core.query_text_rules import bidirectional, multimodal_causal, unimodal

NUM_QUERIES, LENGTHS = 3, (4, 2, 0)
VALID = torch.arange(4) < torch.tensor(LENGTHS)[:, None]


def blocks(query_to_query, query_to_text, text_to_query, text_to_text) -> torch.Tensor:
    """The four blocks of a mask over [queries, text], with the text of every row cut to its length."""
    whole = torch.zeros(NUM_QUERIES + 4, NUM_QUERIES + 4, dtype=torch.bool)
    whole[:NUM_QUERIES, :NUM_QUERIES] = query_to_query
    whole[:NUM_QUERIES, NUM_QUERIES:] = query_to_text
    whole[NUM_QUERIES:, :NUM_QUERIES] = text_to_query
    whole[NUM_QUERIES:, NUM_QUERIES:] = text_to_text
    rows = whole.repeat(len(LENGTHS), 1, 1)
    for row, length in zip(rows, LENGTHS, strict=True):
        row[NUM_QUERIES + length :] = False
        row[:, NUM_QUERIES + length :] = False
    return rows


PATTERNS = [
    (unimodal, blocks(True, False, False, True)),
    (bidirectional, blocks(True, True, True, True)),
    (multimodal_causal, blocks(True, False, True, torch.ones(4, 4).tril().bool())),
]


@pytest.mark.parametrize(("pattern", "expected"), PATTERNS, ids=lambda value: getattr(value, "__name__", ""))
def test_each_pattern_is_its_mask(pattern, expected):
    assert torch.equal(pattern(NUM_QUERIES, VALID).allowed, expected)


@pytest.mark.parametrize("pattern", [unimodal, bidirectional])
def test_text_without_queries_is_bidirectional_over_its_padding(pattern):
    assert torch.equal(pattern(0, VALID).allowed, AttentionRule.bidirectional(3, 4, valid=VALID).allowed)


def test_causal_text_without_queries_is_causal():
    assert torch.equal(multimodal_causal(0, VALID[:1]).allowed, AttentionRule.causal(1, 4).allowed)
