"""Places for media tokens that do not fit them are refused, never filled with a neighbour's tokens."""

import re

import pytest
import torch

from weft.core.attention_rule import AttentionRule
from weft.core.errors import MediaTokenMismatch
from weft.core.media import MediaTokens
from weft.core.sequence import TokenSequence
from weft.fusion.token_concatenation import TokenConcatenation

TOKENS, WIDTH = 8, 2
# Two media of 4 tokens, one a row; spans are item, offset, row, start, length.
FITTING = [[0, 0, 0, 2, 4], [1, 0, 1, 1, 4]]


def fused(spans):
    values = torch.arange(1.0, 9.0)[:, None].expand(8, WIDTH)
    items = MediaTokens(values, torch.arange(2).repeat_interleave(4), torch.tensor(spans))
    rule = AttentionRule.causal(2, TOKENS, "cpu")
    text = TokenSequence(torch.zeros(2, TOKENS, WIDTH), rule.queries.position, rule, torch.zeros(2, TOKENS, dtype=torch.long))
    return TokenConcatenation.Config(streams=("image",)).build().fuse(text, {"image": items}).embeddings[..., 0]


def test_each_medium_stands_in_its_place():
    expected = torch.zeros(2, TOKENS)
    expected[0, 2:6], expected[1, 1:5] = torch.arange(1.0, 5.0), torch.arange(5.0, 9.0)
    assert torch.equal(fused(FITTING), expected)


def test_a_medium_may_stand_in_parts_and_twice():
    twice = fused([[0, 0, 0, 0, 2], [0, 2, 0, 3, 2], [1, 0, 0, 5, 3], [1, 3, 1, 0, 1], [1, 0, 1, 4, 4]])
    assert twice[0].tolist() == [1, 2, 0, 3, 4, 5, 6, 7]
    assert twice[1].tolist() == [8, 0, 0, 0, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        pytest.param([[0, 0, 0, 2, 5], [1, 0, 1, 1, 3]], "5 positions for the 4 tokens of medium 0 (row 0)", id="too long"),
        pytest.param([[0, 0, 0, 2, 4], [1, 0, 1, 1, 3]], "3 positions for the 4 tokens of medium 1 (row 1)", id="too short"),
        pytest.param([[0, 0, 0, 2, 4], [1, 0, 1, 1, 5]], "5 positions for the 4 tokens of medium 1 (row 1)", id="end"),
        pytest.param([[0, 1, 0, 2, 4], [1, 0, 1, 1, 4]], "4 positions for the 4 tokens of medium 0 (row 0)", id="shifted"),
        pytest.param([[0, 0, 0, 2, 4], [0, 0, 1, 1, 4]], "0 positions for the 4 tokens of medium 1 (in no row)", id="no place"),
        pytest.param([[0, 0, 0, 5, 4], [1, 0, 1, 1, 4]], "medium 0 up to position 9 of row 0, which has 8", id="next row"),
        pytest.param([[0, 0, 0, 2, 4], [1, 0, 1, 5, 4]], "medium 1 up to position 9 of row 1, which has 8", id="past"),
    ],
)
def test_other_places_are_refused(spans, said):
    with pytest.raises(
        MediaTokenMismatch, match=f"stream 'image': .*{re.escape(said)}.*; build processor and system from one config"
    ):
        fused(spans)
