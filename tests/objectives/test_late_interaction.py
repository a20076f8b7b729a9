"""Late interaction: by hand, by group, and with equal wordings counted once."""

import math

import pytest
import torch
from torch import nn

from weft.core.batch import MediaBatch, MultimodalBatch, SampleRef, TextSide
from weft.core.layout import MediaLayout
from weft.core.output import SystemOutput
from weft.objectives.late_interaction import LateInteraction, comparison


class Towers(nn.Module):
    """Media features as given; a text's embedding is the row of a table that its first token names."""

    def __init__(self, media, table, scale=2.0, bias=-1.0):
        super().__init__()
        self.media, self.table = media, table
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.logit_bias = nn.Parameter(torch.tensor(bias))
        self.rows_read = 0

    def forward(self, batch):
        self.rows_read = len(batch.main.tokens)
        return SystemOutput(embeddings={"media": self.media, "text": self.table[batch.main.tokens[:, 0]]})


def batch(groups, words, item_samples):
    tokens = torch.tensor(words)[:, None]
    zeros = torch.zeros_like(tokens)
    samples = tuple(SampleRef(row, 1, "", str(row), group) for row, group in enumerate(groups))
    items = len(item_samples)
    media = MediaBatch(
        torch.zeros(items, 1), torch.arange(items), (MediaLayout(1, 2),) * items, torch.zeros(0, 5), torch.tensor(item_samples)
    )
    return MultimodalBatch(TextSide(tokens, zeros, zeros + 1, zeros, zeros), {"image": media}, samples)


def test_the_loss_is_the_best_feature_of_every_pair_over_the_pairs_that_belong():
    media = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [0.8, 0.6]]])
    table = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    towers = Towers(media, table)
    terms = LateInteraction.Config().build()(towers, batch(["a", "b"], [0, 1], [0, 1]))
    best = [[1.0, 0.0], [0.8, -0.6]]  # the largest product of each medium's two features with each text
    expected = sum(
        math.log1p(math.exp(-logit if i == j else logit))
        for i in (0, 1)
        for j in (0, 1)
        if (logit := 2.0 * best[i][j] - 1.0) < 9
    )
    assert terms.sums["contrastive"].item() == pytest.approx(expected, rel=1e-6)
    assert terms.weights["contrastive"] == 2 and terms.mean().item() == pytest.approx(expected / 2, rel=1e-6)


def test_texts_belong_to_the_medium_of_their_group_and_equal_wordings_are_one_text():
    data = batch(["a", "a", "b", "b"], [5, 3, 5, 4], [0, 2])
    compared = comparison(data)
    assert data.main.tokens[compared.rows, 0].tolist() == [3, 4, 5]
    assert compared.belongs.tolist() == [[True, False, True], [False, True, True]]
    towers = Towers(torch.randn(2, 2, 4), torch.randn(6, 4))
    objective = LateInteraction.Config().build()
    terms = objective(towers, data)
    assert towers.rows_read == 3, "a wording is read once"
    assert terms.weights["contrastive"] == 4 == objective.weights(data)["contrastive"]


def test_a_text_whose_picture_is_elsewhere_belongs_to_none():
    belongs = comparison(batch(["a", "lost"], [1, 2], [0])).belongs
    assert belongs.tolist() == [[True, False]]
