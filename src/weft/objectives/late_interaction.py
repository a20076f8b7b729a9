"""Contrastive learning by late interaction: a text is compared with every feature of a medium and meets the best of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.core.batch import MultimodalBatch, TextSide
from weft.core.interfaces import Objective, System
from weft.core.output import LossTerms
from weft.objectives.contrastive import ComparesMedia


class LateInteraction(Objective):
    """SigLIP's yes-or-no question for every pair of medium and text, by the best of the medium's features.

    The texts of a medium are the rows of its group (`SampleRef.group`), as many as there are; two rows of the same words count
    as one text. A tower trained so can say where a thing is, which one pooled vector need not.
    Term "contrastive": the sum over pairs, over the number of pairs that belong together.
    Source: the similarity of FILIP, arXiv:2111.07783; the loss of SigLIP, arXiv:2303.15343.
    """

    additive: ClassVar[bool] = False

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        def build(self) -> LateInteraction:
            return LateInteraction(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def weights(self, batch: MultimodalBatch) -> dict[str, Tensor]:
        belongs, first = belonging(batch)
        return {"contrastive": belongs[:, first].sum().float()}

    def forward(self, system: System, batch: MultimodalBatch) -> LossTerms:
        belongs, first = belonging(batch)
        embeddings = system(replace(batch, main=_rows(batch.main, first))).embeddings
        media, text = embeddings["media"], embeddings["text"]
        similarity = (media.flatten(0, 1) @ text.T).view(len(media), -1, len(text)).amax(1).float()
        compares = cast(ComparesMedia, system)
        logits = compares.logit_scale.exp() * similarity
        if compares.logit_bias is not None:
            logits = logits + compares.logit_bias
        answer = belongs[:, first].float()
        loss = F.binary_cross_entropy_with_logits(logits, answer, reduction="sum")
        return LossTerms({"contrastive": loss}, {"contrastive": answer.sum()})


def belonging(batch: MultimodalBatch) -> tuple[Tensor, Tensor]:
    """Which text row belongs to which medium, [N, B] bool, and the first row of each wording, [texts]."""
    media = next(iter(batch.media.values()))
    groups: dict[str, int] = {}
    row_group = [0] * len(batch.main.tokens)
    for sample in batch.samples:
        row_group[sample.row] = groups.setdefault(sample.group or f"{sample.source}:{sample.id}", len(groups))
    device = batch.main.tokens.device
    rows = torch.tensor(row_group, device=device)
    items = rows[torch.tensor([batch.samples[i].row for i in media.item_sample.tolist()], device=device)]
    wording, first = _wordings(batch.main)
    told = torch.zeros(len(groups), len(first), dtype=torch.bool, device=device)
    told[rows, wording] = True
    return told[items][:, wording], first


def _wordings(text: TextSide) -> tuple[Tensor, Tensor]:
    """The number of each row's wording, [B], and the first row of each wording."""
    words = text.tokens.masked_fill(text.segment == 0, -1)
    unique, wording = torch.unique(words, dim=0, return_inverse=True)
    first = torch.full((len(unique),), len(words), device=words.device)
    order = torch.arange(len(words), device=words.device)
    return wording, first.scatter_reduce(0, wording, order, "amin")


def _rows(text: TextSide, rows: Tensor) -> TextSide:
    """Some rows of a text."""
    return TextSide(text.tokens[rows], text.order[rows], text.segment[rows], text.positions[rows], text.modality[rows])
