"""A block whose halves read the same input, and where its slots stand."""

import torch
from torch import nn

from weft.core.attention_rule import AttentionRule
from weft.layers.attention import Attention
from weft.layers.feed_forward import FeedForward
from weft.layers.parallel_block import ParallelBlock
from weft.layers.slots import BlockContext

CONTEXT = BlockContext(AttentionRule.causal(2, 5))


def block() -> ParallelBlock:
    torch.manual_seed(0)
    return ParallelBlock(nn.LayerNorm(16), Attention(16, 4), nn.LayerNorm(16), FeedForward(16, 32)).eval()


class Adding(nn.Module):
    def __init__(self, what: torch.Tensor) -> None:
        super().__init__()
        self.what, self.read = what, None

    def forward(self, hidden, memory, context):
        self.read = hidden
        return hidden + self.what, memory


@torch.no_grad()
def test_each_half_reads_what_its_slot_leaves():
    """The feed-forward sees what stands in its slot, the attention does not, and neither slot sees the attention's output."""
    hidden, first, second, third = torch.randn(4, 2, 5, 16).unbind(0)
    model = block()
    model.before_attention, model.before_feed_forward, model.after_block = map(Adding, (first, second, third))
    ours, _ = model(hidden, {}, CONTEXT)
    entered = hidden + first
    attended = model.attention(model.attention_norm(entered), CONTEXT)
    stream = entered + second
    expected = stream + attended + model.feed_forward(model.feed_forward_norm(stream))
    torch.testing.assert_close(ours, expected + third, rtol=0, atol=1e-6)  # the same sums in another order
    assert torch.equal(model.before_feed_forward.read, entered)
    torch.testing.assert_close(model.after_block.read, expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_empty_slots_leave_the_published_sum():
    hidden, model = torch.randn(2, 5, 16), block()
    halves = [model.attention(model.attention_norm(hidden), CONTEXT), model.feed_forward(model.feed_forward_norm(hidden))]
    torch.testing.assert_close(model(hidden, {}, CONTEXT)[0], hidden + sum(halves), rtol=0, atol=1e-6)
