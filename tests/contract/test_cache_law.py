"""The cache law, over every language model that exists and every form of it that a published layout holds."""

import itertools

import pytest
import torch
from tiny_model import language_models, text_batch, text_system

from weft.core.attention_rule import AttentionRule, RuleSide
from weft.core.errors import ConfigError
from weft.core.sequence import TokenSequence
from weft.inference.cache import KeyValueCache
from weft.inference.generate import Decoding, generate_tokens
from weft.inference.sampling import Sampling
from weft.layers.attention import join_projections

TOLERANCE = 1e-5  # fp32, 2 layers: the same products summed in another order, times max(1, largest value)
NEAR_TIE = 1e-4  # a greedy step whose two best logits are closer may go either way


def assert_close(ours: torch.Tensor, reference: torch.Tensor) -> None:
    assert float((ours - reference).abs().amax()) <= TOLERANCE * max(1.0, float(reference.abs().amax()))


def run(model, side: RuleSide, tokens: torch.Tensor, cache: KeyValueCache | None = None, part: slice = slice(None)):
    """Hidden states of a part of the tokens, behind what the cache holds."""
    here = RuleSide(*(x[:, part] for x in side))
    rule = AttentionRule(*here) if cache is None else cache.extend(here)
    sequence = TokenSequence(model.embed(tokens[:, part]), here.position, rule, torch.zeros_like(here.order))
    with torch.no_grad():
        return model(sequence, cache)[0]


@pytest.fixture(params=language_models())
def system(request):
    return text_system(language_models()[request.param])


@pytest.fixture
def tokens(system):
    return torch.randint(1, system.language_model.config.vocabulary, (2, 12), generator=torch.Generator().manual_seed(1))


def causal(rows: int, length: int) -> RuleSide:
    order = torch.arange(length).expand(rows, length)
    return RuleSide(order, torch.ones_like(order), order)


@pytest.mark.parametrize("cuts", [(1,), (5,), (11,), (3, 4, 5, 9), tuple(range(1, 12))], ids=str)
def test_a_causal_sequence_may_be_cut_anywhere(system, tokens, cuts):
    model, side = system.language_model, causal(2, 12)
    cache = KeyValueCache.of(model, capacity=2)
    bounds = [0, *cuts, 12]
    pieces = [run(model, side, tokens, cache, slice(a, b)) for a, b in itertools.pairwise(bounds)]
    assert_close(torch.cat(pieces, 1), run(model, side, tokens))
    assert cache.length == 12


def test_joined_projections_change_nothing_whole_or_in_pieces(monkeypatch, system, tokens):
    monkeypatch.setattr("weft.layers.attention.joining_pays", lambda weight: True)  # in float32 too, to compare closely
    model, side = system.language_model, causal(2, 12)
    expected = run(model, side, tokens)
    join_projections(model)
    assert_close(run(model, side, tokens), expected)
    cache, bounds = KeyValueCache.of(model), [0, 3, 4, 5, 9, 12]
    pieces = [run(model, side, tokens, cache, slice(a, b)) for a, b in itertools.pairwise(bounds)]
    assert_close(torch.cat(pieces, 1), expected)


def test_a_prefix_with_equal_orders_may_be_cut_behind_it(system, tokens):
    model = system.language_model
    order = torch.tensor([0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]).expand(2, 12)
    side = RuleSide(order, torch.ones_like(order), torch.arange(12).expand(2, 12))
    cache = KeyValueCache.of(model)
    pieces = [run(model, side, tokens, cache, slice(0, 4)), run(model, side, tokens, cache, slice(4, 12))]
    assert_close(torch.cat(pieces, 1), run(model, side, tokens))


def test_rows_may_be_padded_in_the_middle(system, tokens):
    """Row 1 has a prompt of 3 tokens, padded to 6, and goes on behind the padding."""
    model, side = system.language_model, causal(1, 12)
    cache = KeyValueCache.of(model)
    order = torch.stack((torch.arange(12), torch.tensor([0, 1, 2, 0, 0, 0, 3, 4, 5, 6, 7, 8])))
    segment = torch.ones_like(order)
    segment[1, 3:6] = 0
    padded = RuleSide(order, segment, order)
    pieces = [run(model, padded, tokens, cache, part) for part in (slice(0, 6), slice(6, 7), slice(7, 12))]
    hidden = torch.cat(pieces, 1)
    assert_close(hidden[:1], run(model, side, tokens[:1]))
    alone = torch.cat((tokens[1:, :3], tokens[1:, 6:]), 1)
    assert_close(torch.cat((hidden[1:, :3], hidden[1:, 6:]), 1), run(model, causal(1, 9), alone))


def test_decoding_steps_equal_the_full_forward(system, tokens):
    """The step that never looks at the data, on rows of different lengths."""
    prompts = [tokens[0, :7].tolist(), tokens[1, :2].tolist()]
    decoding = Decoding(system, capacity=4)
    logits = [decoding.prefill(text_batch(prompts))]
    for step in range(4):
        logits.append(decoding.step(tokens[:, 7 + step]))
    for row, prompt in enumerate(prompts):
        full = [*prompt, *tokens[row, 7:11].tolist()]
        with torch.no_grad():
            reference = system(text_batch([full])).logits()[0, len(prompt) - 1 :]
        assert_close(torch.stack([step[row] for step in logits]), reference)


def greedy(system, rows, steps=24):
    """Answers and the gap between the two best logits at each step."""
    decoding = Decoding(system)
    logits = decoding.prefill(text_batch(rows))
    answers, gaps = [[] for _ in rows], [[] for _ in rows]
    for _ in range(steps):
        best = logits.topk(2).values
        chosen = logits.argmax(-1)
        for row in range(len(rows)):
            answers[row].append(int(chosen[row]))
            gaps[row].append(float(best[row, 0] - best[row, 1]))
        logits = decoding.step(chosen)
    return answers, gaps


def test_a_batch_changes_no_greedy_answer(system, tokens, record_property):
    rows = [tokens[0, :9].tolist(), tokens[1, :1].tolist(), tokens[1].tolist(), tokens[0, :4].tolist()]
    together, gaps = greedy(system, rows)
    near = sum(gap < NEAR_TIE for row in gaps for gap in row)
    record_property("steps with a top-2 gap under 1e-4", near)
    for row, answer, row_gaps in zip(rows, together, gaps, strict=True):
        (alone,), _ = greedy(system, [row])
        sure = next((i for i, gap in enumerate(row_gaps) if gap < NEAR_TIE), len(answer))
        assert alone[:sure] == answer[:sure]
    assert near <= len(rows)  # ties are the exception: otherwise the comparison above would prove little


def test_finished_rows_leave_and_the_others_do_not_notice(system, tokens):
    rows = [tokens[0, :5].tolist(), tokens[1, :8].tolist(), tokens[0, :2].tolist()]
    (answers, _) = greedy(system, rows, 12)
    stop = next(token for answer in answers for token in answer[:8] if any(token not in other for other in answers))
    decoding, written = Decoding(system), [[] for _ in rows]
    logits = decoding.prefill(text_batch(rows))
    sizes = []
    for events in generate_tokens(decoding, logits, Sampling(max_new_tokens=12), stop_ids={stop}):
        sizes.append(len(events))
        for event in events:
            written[event.row].append(event.token)
    for answer, full in zip(written, answers, strict=True):
        end = full.index(stop) + 1 if stop in full else 12
        assert answer == full[:end]
    assert sizes[0] == 3 and sizes[-1] < 3


def test_select_reorders_drops_and_repeats_rows(system, tokens):
    model, side = system.language_model, causal(2, 12)
    cache = KeyValueCache.of(model)
    run(model, side, tokens, cache, slice(0, 6))
    cache.select([1, 1, 0])
    wide = tokens[[1, 1, 0]]
    hidden = run(model, causal(3, 12), wide, cache, slice(6, 12))
    assert_close(hidden, run(model, causal(3, 12), wide)[:, 6:])
    cache.select(torch.tensor([2]))
    assert cache.side is not None and cache.side.order.shape == (1, 12)


def test_crop_forgets_what_came_later(system, tokens):
    model, side = system.language_model, causal(2, 12)
    cache = KeyValueCache.of(model)
    run(model, side, tokens.flip(1), cache, slice(0, 3))
    cache.crop(0)
    run(model, side, tokens, cache, slice(0, 9))
    cache.crop(4)
    assert_close(run(model, side, tokens, cache, slice(4, 12)), run(model, side, tokens)[:, 4:])


class Doubling(torch.nn.Module):
    """A filled slot."""

    def forward(self, hidden, memory, context):
        return hidden * 2, memory


@pytest.mark.parametrize("slot", [None, "before_attention", "after_block"])
def test_one_token_a_row_is_what_the_whole_forward_gives(system, tokens, slot):
    """With and without a cache, rows of different lengths, behind a first part, and with a fusion in the last block."""
    model = system.language_model
    if slot is not None and slot not in model.slots:
        with pytest.raises(ConfigError, match=f"needs '{slot}' of a block"):
            setattr(model.blocks[-1], slot, Doubling())
        return
    if slot is not None:
        setattr(model.blocks[-1], slot, Doubling())
    segment = torch.ones(2, 12, dtype=torch.long)
    segment[1, 8:] = 0
    side, last = causal(2, 12)._replace(segment=segment), torch.tensor([11, 7])
    reference = run(model, side, tokens)[[0, 1], last]
    for split in (None, 0, 5):
        cache = None if split is None else KeyValueCache.of(model)
        part = slice(split or 0, 12)
        if split:
            run(model, side, tokens, cache, slice(0, split))
        here = RuleSide(*(x[:, part] for x in side))
        rule = AttentionRule(*here) if cache is None else cache.extend(here)
        sequence = TokenSequence(model.embed(tokens[:, part]), here.position, rule, torch.zeros_like(here.order))
        with torch.no_grad():
            assert_close(model.last_hidden(sequence, last - part.start, cache), reference)
        assert cache is None or (cache.keys[-1] is not None and cache.length == 12)
