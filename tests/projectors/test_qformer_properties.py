"""What the Q-Former promises beyond the contract of projectors and parity with its references."""

import dataclasses

import pytest
import torch

from weft.core.errors import ConfigError, ContextTooShort
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures
from weft.core.query_text_rules import bidirectional, multimodal_causal, unimodal
from weft.projectors.qformer import QFormer

WIDTH, OUTPUT_WIDTH, LENGTH = 24, 40, 7
PLAIN = QFormer.Config.tiny()
READING = dataclasses.replace(PLAIN, vocabulary=50, context=8)
QUERIES = PLAIN.num_queries
TEXT = torch.tensor([[5, 6, 7, 8], [9, 10, -1, -1]])


def build(config: QFormer.Config = READING) -> QFormer:
    """Weights that let every part matter: ten times the published start, which is near the identity."""
    torch.manual_seed(0)
    projector = config.build(WIDTH, OUTPUT_WIDTH).eval()
    for parameter in projector.parameters():
        parameter.data = parameter.data * 10 if parameter.dim() > 1 else parameter.data
    return projector


def media(instruction: torch.Tensor | None = None, seed: int = 0, layout: MediaLayout | None = None) -> MediaFeatures:
    values = torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(seed))
    return MediaFeatures(values, torch.arange(2), (layout or MediaLayout(1, LENGTH),) * 2, instruction=instruction)


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # float32; sums may run in another order


def differs(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours - theirs).abs().max() > 1e-2)


@torch.no_grad()
@pytest.mark.parametrize("config", [PLAIN, READING])
def test_the_order_of_the_features_does_not_matter_but_the_features_do(config):
    projector, seen = build(config), media(TEXT)
    shuffled = dataclasses.replace(seen, values=seen.values[:, torch.randperm(LENGTH, generator=torch.manual_seed(1))])
    same(projector(shuffled).values, projector(seen).values)
    assert differs(projector(media(TEXT, seed=1)).values, projector(seen).values)


@torch.no_grad()
def test_the_number_of_tokens_does_not_depend_on_the_number_of_features():
    projector = build(PLAIN)
    for length in (1, 5, 30):
        seen = MediaFeatures(torch.randn(1, length, WIDTH), torch.zeros(1, dtype=torch.long), (MediaLayout(1, length),))
        assert projector(seen).values.shape == (QUERIES, OUTPUT_WIDTH)
    assert PLAIN.num_tokens(MediaLayout(16, 16, frames=4)) == 4 * QUERIES


@torch.no_grad()
def test_another_instruction_gives_other_tokens_and_of_this_medium_alone():
    projector = build()
    asked = projector(media(TEXT)).values.unflatten(0, (2, -1))
    changed = TEXT.clone()
    changed[0, 2] = 11
    other = projector(media(changed)).values.unflatten(0, (2, -1))
    assert differs(other[0], asked[0])
    assert torch.equal(other[1], asked[1])
    assert differs(projector(media()).values.unflatten(0, (2, -1))[0], asked[0])


@torch.no_grad()
def test_the_order_of_an_instruction_matters():
    projector = build()
    assert differs(projector(media(TEXT.flip(1).roll(2, 1))).values, projector(media(TEXT)).values)


@torch.no_grad()
def test_padding_of_an_instruction_changes_nothing():
    projector = build()
    padded = torch.cat((TEXT, torch.full((2, 3), -1)), 1)
    same(projector(media(padded)).values, projector(media(TEXT)).values)
    alone = MediaFeatures(media().values[1:], torch.tensor([0]), (MediaLayout(1, LENGTH),), instruction=TEXT[1:, :2])
    same(projector(alone).values, projector(media(TEXT)).values[QUERIES:])


@torch.no_grad()
def test_an_empty_instruction_is_no_instruction():
    projector = build()
    expected = projector(media()).values
    same(projector(media(torch.full((2, 3), -1))).values, expected)
    same(projector(media(torch.zeros(2, 0, dtype=torch.long))).values, expected)


@torch.no_grad()
def test_every_frame_of_a_clip_is_read_under_the_clips_instruction():
    projector, values = build(), torch.randn(3, LENGTH, WIDTH, generator=torch.Generator().manual_seed(2))
    item, clip = torch.tensor([0, 0, 1]), (MediaLayout(1, LENGTH, frames=2), MediaLayout(1, LENGTH))
    together = projector(MediaFeatures(values, item, clip, instruction=TEXT))
    assert together.item.tolist() == [0] * 2 * QUERIES + [1] * QUERIES
    frames = MediaFeatures(values, torch.arange(3), (MediaLayout(1, LENGTH),) * 3, instruction=TEXT[item])
    same(together.values, projector(frames).values)


@torch.no_grad()
def test_a_projector_without_a_vocabulary_does_not_look_at_instructions():
    projector = build(PLAIN)
    assert torch.equal(projector(media(TEXT)).values, projector(media()).values)


def hidden(projector: QFormer, text: torch.Tensor, pattern, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and text under a pattern."""
    states = projector.transformer(media(seed=seed), text, pattern(QUERIES, text >= 0))
    return states[:, :QUERIES], states[:, QUERIES:]


@torch.no_grad()
def test_apart_neither_the_text_nor_the_picture_reaches_the_other():
    projector, changed = build(), TEXT.clone()
    changed[0, 2] = 11
    queries, text = hidden(projector, TEXT, unimodal)
    assert torch.equal(hidden(projector, changed, unimodal)[0], queries)
    assert differs(hidden(projector, changed, unimodal)[1][0], text[0])
    assert torch.equal(hidden(projector, TEXT, unimodal, seed=1)[1], text)
    same(queries, projector.transformer(media()))
    same(text[TEXT >= 0], projector.transformer(None, TEXT)[TEXT >= 0])


@torch.no_grad()
def test_together_the_queries_change_with_the_text_and_the_text_with_the_picture():
    projector, changed = build(), TEXT.clone()
    changed[0, 2] = 11
    queries, text = hidden(projector, TEXT, bidirectional)
    assert differs(hidden(projector, changed, bidirectional)[0][0], queries[0])
    assert differs(hidden(projector, TEXT, bidirectional, seed=1)[1], text)


@torch.no_grad()
@pytest.mark.parametrize("place", range(4))
def test_writing_a_token_changes_neither_the_queries_nor_what_was_written_before(place):
    projector, changed = build(), TEXT.clone()
    changed[0, place] = 11
    queries, text = hidden(projector, TEXT, multimodal_causal)
    queries_after, text_after = hidden(projector, changed, multimodal_causal)
    assert torch.equal(queries_after, queries)
    assert torch.equal(text_after[0, :place], text[0, :place])
    assert all(differs(text_after[0, later], text[0, later]) for later in range(place, 4))
    assert differs(hidden(projector, TEXT, multimodal_causal, seed=1)[1][0], text[0])


def test_the_gradient_reaches_all_that_the_instruction_goes_through():
    projector = build()
    seen = media(TEXT)
    seen.values.requires_grad_()
    probe = torch.randn(OUTPUT_WIDTH, generator=torch.Generator().manual_seed(3))
    (projector(seen).values @ probe).sum().backward()
    assert (seen.values.grad.abs().sum((1, 2)) > 0).all()
    idle = {name for name, p in projector.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    last = f"transformer.blocks.{len(projector.transformer.blocks) - 1}.feed_forward.text."
    unread = {name for name, _ in projector.named_parameters() if name.startswith(last)}
    assert idle == unread  # the last block's text leads nowhere: only queries leave
    table = projector.transformer.token_embedding.weight.grad.abs().sum(1)
    assert table.nonzero().flatten().tolist() == [5, 6, 7, 8, 9, 10]


def test_queries_begin_with_the_texts_feed_forward():
    transformer = READING.build(WIDTH, OUTPUT_WIDTH).transformer
    for block in transformer.blocks:
        query, text = block.feed_forward.query.state_dict(), block.feed_forward.text.state_dict()
        assert query.keys() == text.keys() and all(torch.equal(query[name], text[name]) for name in query)
    assert 0.015 < transformer.queries.std() < 0.025


def test_cross_attention_stands_in_every_second_block_from_the_first():
    names = dict(dataclasses.replace(PLAIN, num_layers=5).build(WIDTH, OUTPUT_WIDTH).named_modules())
    layers = [n for n in range(5) if f"transformer.blocks.{n}.before_feed_forward.attention" in names]
    assert layers == [0, 2, 4]


def test_what_cannot_be_read_is_refused():
    with pytest.raises(ConfigError, match="no weights for text; set its vocabulary"):
        build(PLAIN).transformer(media(), TEXT)
    with pytest.raises(ContextTooShort, match="8 positions got a text of 9 tokens"):
        build()(media(torch.ones(2, 9, dtype=torch.long)))
    with pytest.raises(ConfigError, match="width 30 does not split into 4 heads"):
        dataclasses.replace(PLAIN, width=30, num_heads=4).build(WIDTH, OUTPUT_WIDTH)


@torch.no_grad()
def test_in_bfloat16_the_tokens_are_finite_and_near():
    projector = READING.build(WIDTH, OUTPUT_WIDTH).eval()
    seen = media(TEXT)
    exact = projector(seen).values
    reduced = projector.bfloat16()(dataclasses.replace(seen, values=seen.values.bfloat16())).values
    assert reduced.dtype == torch.bfloat16 and reduced.isfinite().all()
    assert (reduced.float() - exact).abs().mean() < 0.05 * exact.abs().mean()  # 8 bits of mantissa through a few layers
