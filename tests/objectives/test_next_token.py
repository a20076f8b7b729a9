"""Next-token loss: by hand, in chunks, and only where a target exists."""

import math

import torch

from weft.core.batch import IGNORE, MultimodalBatch, TextSide
from weft.core.output import SystemOutput
from weft.objectives.next_token import NextToken


def batch(targets, weights=None):
    targets = torch.tensor(targets)
    zeros = torch.zeros_like(targets)
    text = TextSide(zeros, zeros, zeros + 1, zeros, zeros, {"text": targets}, {} if weights is None else {"text": weights})
    return MultimodalBatch(text)


def system(logits, seen):
    def head(hidden):
        seen.append(len(hidden))
        return hidden

    return lambda _: SystemOutput(hidden=logits, heads={"text": head})


def test_the_loss_is_the_sum_over_targets_and_logits_exist_nowhere_else():
    logits = torch.tensor([[[math.log(3.0), 0.0], [0.0, 0.0], [0.0, math.log(7.0)]]])
    seen: list[int] = []
    terms = NextToken.Config().build()(system(logits, seen), batch([[0, IGNORE, 1]]))
    torch.testing.assert_close(terms.sums["next_token"], torch.tensor(-math.log(3 / 4) - math.log(7 / 8)))
    assert terms.weights["next_token"] == 2 and seen == [2]


def test_chunks_add_up_and_are_divided_once():
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 5, 9), torch.randint(0, 9, (2, 5)).tolist()
    targets[0][2] = IGNORE
    whole = NextToken.Config().build()(system(logits, []), batch(targets))
    seen: list[int] = []
    chunked = NextToken.Config(chunk=2).build()(system(logits, seen), batch(targets))
    assert seen == [2, 2, 2, 2, 1]
    torch.testing.assert_close(whole.mean(), chunked.mean())


def test_weights_weigh_tokens():
    logits = torch.zeros(1, 2, 2)
    terms = NextToken.Config().build()(system(logits, []), batch([[0, 1]], torch.tensor([[3.0, 1.0]])))
    torch.testing.assert_close(terms.sums["next_token"], torch.tensor(4 * math.log(2)))
    assert terms.weights["next_token"] == 4


def test_a_batch_without_targets_has_loss_zero_and_a_gradient_path():
    logits = torch.randn(1, 2, 3, requires_grad=True)
    terms = NextToken.Config().build()(system(logits, []), batch([[IGNORE, IGNORE]]))
    terms.mean().backward()
    assert terms.mean() == 0 and torch.equal(logits.grad, torch.zeros_like(logits))
    assert terms.weights["next_token"] == 0
