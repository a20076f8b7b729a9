"""Contrastive losses: by hand, and the symmetries that they must have."""

import math

import pytest
import torch
from torch import nn

from weft.core.batch import MediaBatch, MultimodalBatch, SampleRef, TextSide
from weft.core.layout import MediaLayout
from weft.core.output import SystemOutput
from weft.objectives.contrastive import SigmoidContrastive, SoftmaxContrastive


class Towers(nn.Module):
    def __init__(self, media, text, scale, bias=None):
        super().__init__()
        self.media, self.text = media, text
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(bias))

    def forward(self, batch):
        return SystemOutput(embeddings={"media": self.media, "text": self.text})


def pairs(n):
    zeros = torch.zeros(n, 1, dtype=torch.long)
    media = MediaBatch(torch.zeros(n, 1), torch.arange(n), (MediaLayout(1, 1),) * n, torch.zeros(0, 5), torch.arange(n))
    samples = tuple(SampleRef(i, 1, "", str(i)) for i in range(n))
    return MultimodalBatch(TextSide(zeros, zeros, zeros + 1, zeros, zeros), {"image": media}, samples)


def loss(objective, *towers):
    return objective.Config().build()(Towers(*towers), pairs(len(towers[0]))).mean()


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.31326), (0.07, 6.25e-7)])
def test_softmax_loss_of_the_identity(temperature, expected):
    value = loss(SoftmaxContrastive, torch.eye(2), torch.eye(2), 1 / temperature)
    assert value.item() == pytest.approx(expected, rel=2e-2, abs=5e-6)  # log1p(exp(-1/t)) in fp32


def test_equal_similarities_cost_the_logarithm_of_the_batch():
    same = torch.ones(5, 3) / math.sqrt(3)
    assert loss(SoftmaxContrastive, same, same, 10.0).item() == pytest.approx(math.log(5), abs=1e-5)


@pytest.mark.parametrize("objective", [SoftmaxContrastive, SigmoidContrastive])
def test_the_order_of_pairs_does_not_matter(objective):
    torch.manual_seed(0)
    media, text = (nn.functional.normalize(torch.randn(6, 4), dim=-1) for _ in range(2))
    order = torch.randperm(6)
    torch.testing.assert_close(loss(objective, media, text, 5.0, -2.0), loss(objective, media[order], text[order], 5.0, -2.0))


def test_sigmoid_loss_divides_by_the_batch_only():
    torch.manual_seed(0)
    media, text = (nn.functional.normalize(torch.randn(3, 4), dim=-1) for _ in range(2))
    expected = 0.0
    for i in range(3):
        for j in range(3):
            logit = 10.0 * float(media[i] @ text[j]) - 10.0
            expected += math.log1p(math.exp(-logit if i == j else logit))
    assert loss(SigmoidContrastive, media, text, 10.0, -10.0).item() == pytest.approx(expected / 3, rel=1e-5)


def test_pairs_follow_the_samples_rows():
    batch = pairs(2)
    swapped = MultimodalBatch(batch.main, batch.media, (SampleRef(1, 1, "", "0"), SampleRef(0, 1, "", "1")))
    terms = SoftmaxContrastive.Config().build()(Towers(torch.eye(2), torch.eye(2).flip(0), 50.0), swapped)
    assert terms.mean() < 1e-6


def test_the_scale_is_clamped_after_a_step():
    towers = Towers(torch.eye(2), torch.eye(2), 500.0)
    SoftmaxContrastive.Config().build().after_step(towers)
    assert towers.logit_scale.exp().item() == pytest.approx(100.0, rel=1e-5)


@pytest.mark.parametrize("objective", [SoftmaxContrastive, SigmoidContrastive])
def test_logits_keep_full_precision_under_autocast(objective):
    torch.manual_seed(0)
    media, text = (nn.functional.normalize(torch.randn(6, 4), dim=-1) for _ in range(2))
    plain = loss(objective, media, text, 100.0, -10.0)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = loss(objective, media, text, 100.0, -10.0)
    assert torch.equal(plain, reduced)
