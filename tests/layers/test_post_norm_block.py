"""The post-norm block: BERT's order of norms, and its slots."""

import torch
from torch import nn
from torch.nn.functional import gelu, layer_norm

from weft.core.attention_rule import AttentionRule
from weft.layers.attention import Attention
from weft.layers.post_norm_block import PostNormBlock, PostNormFeedForward
from weft.layers.slots import BlockContext

HIDDEN = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
CONTEXT = BlockContext(AttentionRule.bidirectional(2, 5))


def block() -> PostNormBlock:
    torch.manual_seed(1)
    return PostNormBlock(Attention(8, 2), nn.LayerNorm(8, eps=1e-12), PostNormFeedForward(8, 12, "gelu", 1e-12))


class Adding(nn.Module):
    """A slot that adds a number and notes what it was given."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def forward(self, hidden, memory, context):
        return hidden + self.number, {**memory, self.number: hidden}


@torch.no_grad()
def test_norms_stand_behind_their_sums_and_slots_before_between_and_behind():
    ours = block()
    ours.before_attention, ours.before_feed_forward, ours.after_block = Adding(1.0), Adding(2.0), Adding(3.0)
    found, memory = ours(HIDDEN, {}, CONTEXT)
    entered = HIDDEN + 1
    attended = layer_norm(entered + ours.attention(entered, CONTEXT), (8,), eps=1e-12)
    between = attended + 2
    ff = ours.feed_forward
    left = layer_norm(between + ff.down(gelu(ff.up(between))), (8,), eps=1e-12)
    for number, expected in ((1.0, HIDDEN), (2.0, attended), (3.0, left)):
        torch.testing.assert_close(memory[number], expected, rtol=0, atol=1e-6)  # float32, the same operations
    torch.testing.assert_close(found, left + 3, rtol=0, atol=1e-6)


@torch.no_grad()
def test_empty_slots_change_nothing():
    ours = block()
    found, memory = ours(HIDDEN, {"kept": 1}, CONTEXT)
    assert memory == {"kept": 1}
    torch.testing.assert_close(found.mean(-1), torch.zeros(2, 5), rtol=0, atol=1e-6)  # it ends in a norm
