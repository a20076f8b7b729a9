"""The three losses of BLIP-2's first stage against loops written from the paper; on two ranks, packed, and after a resume."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny_pairs import LENGTHS, NUM_QUERIES, START, pairs, seeing, system

from weft.core.attention_rule import AttentionRule
from weft.core.errors import DataError
from weft.objectives.image_grounded_generation import ImageGroundedGeneration
from weft.objectives.image_text_contrastive import Comparison, ImageTextContrastive, compared
from weft.objectives.image_text_matching import ImageTextMatching, hard_negatives
from weft.objectives.image_text_pretraining import ImageTextPretraining

NUM_PAIRS, SHARES = len(LENGTHS), ((0, 3), (3, 5))
TOLERANCE = 2e-5  # fp32: sums of some hundred terms in another order; a sum over a batch has ten of it or more


def whole(objective, **how):
    batch, media = pairs(**how)
    return objective(seeing(system(), media), batch)


def read(made, medium, words, allowed):
    """One medium and one text in a row, under a mask written out; queries, text."""
    _, media = pairs()
    rule = AttentionRule.bidirectional(1, NUM_QUERIES + len(words))
    rule.__dict__.update(allowed=allowed[None], pattern="general", everyone_sees=True)
    hidden = made.transformer(media["image"].of_items(torch.tensor([medium])), words[None], rule)[0]
    return hidden[:NUM_QUERIES], hidden[NUM_QUERIES:]


def texts():
    batch, _ = pairs()
    return [row[:length] for row, length in zip(batch.main.tokens, LENGTHS, strict=True)]


def smoothed(logits, label):
    """Cross entropy against 0.9 at the label and 0.1 spread over all."""
    log = [float(one) for one in logits - logits.logsumexp(0)]
    return -sum((0.9 * (i == label) + 0.1 / len(log)) * value for i, value in enumerate(log))


def similarities(made):
    """Every medium with every text: the cosine of its best query, over the temperature."""
    table = torch.empty(NUM_PAIRS, NUM_PAIRS)
    for n, words in enumerate(texts()):
        apart = torch.block_diag(torch.ones(NUM_QUERIES, NUM_QUERIES), torch.ones(len(words), len(words))).bool()
        for m in range(NUM_PAIRS):
            queries, text = read(made, m, words, apart)
            one = made.text_projection(text[0])
            cosines = [torch.cosine_similarity(made.media_projection(query), one, dim=0) for query in queries]
            table[m, n] = max(cosines) / made.temperature
    return table


@torch.no_grad()
def test_contrast_is_the_best_querys_and_smoothed():
    table = similarities(system())
    expected = sum(smoothed(table[i], i) + smoothed(table[:, i], i) for i in range(NUM_PAIRS)) / 2
    terms = whole(ImageTextContrastive.Config().build())
    assert float(terms.sums["contrast"]) == pytest.approx(expected, abs=TOLERANCE * 10)
    assert float(terms.weights["contrast"]) == NUM_PAIRS


def test_equal_similarities_cost_ln_of_the_pairs_in_both_directions():
    flat = torch.zeros(NUM_PAIRS, NUM_PAIRS)
    batch, _ = pairs()
    assert float(ImageTextContrastive.Config().build().of(Comparison(flat, flat, 0), batch).mean()) == pytest.approx(
        math.log(NUM_PAIRS)
    )


@torch.no_grad()
def test_matching_asks_each_pair_and_two_negatives():
    made, objective = system(), ImageTextMatching.Config().build()
    batch, media = pairs()
    examples, label = objective.examples(batch, compared(made, batch, media))
    assert label.tolist() == [1] * NUM_PAIRS + [0] * 2 * NUM_PAIRS
    own = list(range(NUM_PAIRS))
    assert examples[:NUM_PAIRS].tolist() == [[i, i] for i in own]
    assert examples[NUM_PAIRS : 2 * NUM_PAIRS, 0].tolist() == own and examples[2 * NUM_PAIRS :, 1].tolist() == own
    assert all(text != medium for text, medium in examples[NUM_PAIRS:].tolist())
    expected = 0.0
    for (text, medium), true in zip(examples.tolist(), label.tolist(), strict=True):
        words = texts()[text]
        queries, _ = read(made, medium, words, torch.ones(2 * (NUM_QUERIES + len(words),), dtype=torch.bool))
        logits = sum(made.matching_head(query) for query in queries) / NUM_QUERIES
        expected -= float(logits.log_softmax(0)[true])
    terms = whole(objective)
    assert float(terms.sums["matching"]) == pytest.approx(expected, abs=TOLERANCE * 10)
    assert float(terms.weights["matching"]) == 3 * NUM_PAIRS


def test_negatives_follow_the_softmax_of_similarities_and_are_never_the_own_pair():
    similarity = torch.tensor([[50.0, 1.0, 2.0, 0.0]])
    draws = torch.arange(4000) / 4000
    drawn = hard_negatives(similarity.expand(4000, -1), torch.zeros(4000, dtype=torch.long), draws)
    shares = similarity[0, 1:].softmax(0)
    assert torch.allclose(drawn.bincount(minlength=4) / 4000, torch.cat((torch.zeros(1), shares)), atol=1e-3)
    last = hard_negatives(similarity.flip(1), torch.tensor([3]), torch.tensor([1 - 2**-24]))
    assert last.tolist() == [2], "the end of the range is not the own pair"
    with pytest.raises(DataError, match="two pairs in a batch or more"):
        hard_negatives(torch.zeros(1, 1), torch.zeros(1, dtype=torch.long), torch.zeros(1))


def test_draws_change_with_the_step_and_come_back_with_it():
    objective, batch = ImageTextMatching.Config().build(), pairs()[0]
    first = objective.chance(batch)
    objective.after_step(None)
    second = objective.chance(batch)
    assert not torch.equal(first, second)
    resumed = ImageTextMatching.Config().build()
    resumed.load_state_dict(objective.state_dict())
    assert torch.equal(resumed.chance(batch), second)
    assert torch.equal(objective.eval().chance(batch), first)


@torch.no_grad()
def test_generation_begins_with_the_start_token_and_sees_the_queries_and_what_was_written():
    made, expected, count = system(), 0.0, 0
    for i, words in enumerate(texts()):
        total = NUM_QUERIES + len(words)
        allowed = torch.ones(total, total).tril().bool()
        allowed[:NUM_QUERIES] = torch.arange(total) < NUM_QUERIES
        _, text = read(made, i, torch.cat((torch.tensor([START]), words[1:])), allowed)
        for place in range(len(words) - 1):
            expected += smoothed(made.words(text[place]), int(words[place + 1]))
            count += 1
    terms = whole(ImageGroundedGeneration.Config().build())
    assert float(terms.sums["generation"]) == pytest.approx(expected, abs=TOLERANCE * 50)
    assert float(terms.weights["generation"]) == count


def gradients(made, objective, batch, total=None):
    terms = objective(made, batch)
    weights = terms.weights if total is None else total
    torch.stack([terms.sums[name] / weights[name] for name in terms.sums]).sum().backward()
    zero = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in made.named_parameters()}
    return {**{name: value.detach() for name, value in terms.sums.items()}, **zero}


def close(found, expected):
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=TOLERANCE * max(1.0, float(value.abs().max())), msg=name)


def test_the_sum_has_the_three_losses_and_their_gradients():
    batch, media = pairs()
    parts = [kind.Config().build() for kind in (ImageTextContrastive, ImageTextMatching, ImageGroundedGeneration)]
    separate = system()
    for objective in parts:
        expected = gradients(seeing(separate, media), objective, batch)  # adds up over the three
        terms = objective(separate, batch)
        together = ImageTextPretraining.Config().build()(seeing(system(), media), batch)
        for name, value in terms.sums.items():
            assert float(together.sums[name].detach()) == pytest.approx(float(value.detach()), abs=TOLERANCE)
            assert torch.equal(together.weights[name], terms.weights[name])
    found = gradients(seeing(system(), media), ImageTextPretraining.Config().build(), batch)
    close(found, {name: value for name, value in expected.items() if name not in terms.sums})


def test_packed_rows_are_written_with_the_loss_and_gradients_of_their_samples_alone():
    assert ImageGroundedGeneration.additive and not ImageTextPretraining.additive
    results = []
    for packed in (False, True):
        batch, media = pairs(packed=packed)
        results.append(gradients(seeing(system(), media), ImageGroundedGeneration.Config().build(), batch))
    close(*results)


def work(rank, place):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/meeting", rank=rank, world_size=2)
    objective, (batch, media) = ImageTextPretraining.Config().build(), pairs(*SHARES[rank])
    objective.across(dist.group.WORLD)
    total = ImageTextPretraining.Config().build().weights(pairs()[0])
    shares = gradients(seeing(system(), media), objective, batch, total)
    for value in shares.values():
        dist.all_reduce(value)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = objective(seeing(system(), media), batch).mean().detach()
    torch.save((shares, reduced), f"{place}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_together_are_one_with_the_whole_batch(tmp_path):
    mp.start_processes(work, (str(tmp_path),), nprocs=2, start_method="fork")
    batch, media = pairs()
    expected = gradients(seeing(system(), media), ImageTextPretraining.Config().build(), batch)
    for rank in range(2):
        shares, reduced = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        close(shares, expected)
        assert reduced.isfinite()
