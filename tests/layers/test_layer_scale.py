"""Blocks with scaled branches, held to the plain block."""

import torch
from torch import nn

from weft.core.attention_rule import AttentionRule
from weft.layers.attention import Attention
from weft.layers.block import PreNormBlock
from weft.layers.feed_forward import FeedForward
from weft.layers.layer_scale import LayerScaleBlock, layer_scale_blocks
from weft.layers.slots import BlockContext

WIDTH = 16
HIDDEN = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))
CONTEXT = BlockContext(AttentionRule.causal(2, 5))


def scaled(initial: float) -> LayerScaleBlock:
    torch.manual_seed(0)
    (block,) = layer_scale_blocks(WIDTH, 1, 2, lambda: FeedForward(WIDTH, 32), 1e-6, initial)
    return block.eval()


def plain(of: LayerScaleBlock) -> PreNormBlock:
    return PreNormBlock(of.attention_norm, of.attention, of.feed_forward_norm, of.feed_forward).eval()


class Double(nn.Module):
    """Fills a slot."""

    def forward(self, hidden, memory, context):
        return 2 * hidden, memory


def test_scaled_by_one_it_is_the_plain_block_slots_included():
    ours, theirs = scaled(1.0), plain(scaled(1.0))
    for slot in (None, "before_attention", "before_feed_forward", "after_block"):
        if slot is not None:
            setattr(ours, slot, Double())
            setattr(theirs, slot, Double())
        with torch.no_grad():
            assert torch.equal(ours(HIDDEN, {}, CONTEXT)[0], theirs(HIDDEN, {}, CONTEXT)[0])


def test_scaling_is_the_same_as_scaling_the_rows_of_the_last_matrices():
    block = scaled(1.0)
    with torch.no_grad():
        block.attention_scale.weight.normal_(generator=torch.Generator().manual_seed(1))
        block.feed_forward_scale.weight.normal_(generator=torch.Generator().manual_seed(2))
        found = block(HIDDEN, {}, CONTEXT)[0]
        for linear, scale in (
            (block.attention.output, block.attention_scale),
            (block.feed_forward.down, block.feed_forward_scale),
        ):
            linear.weight.mul_(scale.weight[:, None])
            linear.bias.mul_(scale.weight)
        torch.testing.assert_close(found, plain(block)(HIDDEN, {}, CONTEXT)[0], rtol=0, atol=1e-5)  # float32, other order


def test_scaled_by_nothing_it_passes_the_stream_on():
    with torch.no_grad():
        assert torch.equal(scaled(0.0)(HIDDEN, {}, CONTEXT)[0], HIDDEN)


def test_one_token_a_row_is_what_the_whole_row_gives_there():
    block, index = scaled(0.5), torch.tensor([4, 2])
    with torch.no_grad():
        whole = block(HIDDEN, {}, CONTEXT)[0]
        torch.testing.assert_close(block.last(HIDDEN, CONTEXT, index)[:, 0], whole[torch.arange(2), index], rtol=0, atol=1e-5)


def test_attention_is_numbered_by_layer_for_the_cache():
    blocks = layer_scale_blocks(WIDTH, 3, 2, lambda: FeedForward(WIDTH, 32), 1e-6, 0.1)
    assert [block.attention.layer for block in blocks if isinstance(block.attention, Attention)] == [0, 1, 2]
