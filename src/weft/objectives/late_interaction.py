"""Contrastive learning by late interaction: a text is compared with every feature of a medium and meets the best of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.core.batch import MultimodalBatch, TextSide
from weft.core.interfaces import Objective, System
from weft.core.output import LossTerms
from weft.objectives.contrastive import ComparesMedia
from weft.objectives.exchange import every_row, gather_rows, row_counts

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


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
        self.group: ProcessGroup | None = None
        self._weighed: tuple[MultimodalBatch, Comparison] | None = None

    def across(self, group: ProcessGroup) -> None:
        self.group = group

    def weights(self, batch: MultimodalBatch) -> dict[str, Tensor]:
        self._weighed = batch, comparison(batch, self.group)
        return {"contrastive": self._weighed[1].belongs.sum().float()}

    def forward(self, system: System, batch: MultimodalBatch) -> LossTerms:
        if self._weighed is not None and self._weighed[0] is batch:
            compared = self._weighed[1]
        else:
            compared = comparison(batch, self.group)
        self._weighed = None
        embeddings = system(replace(batch, main=_rows(batch.main, compared.rows))).embeddings
        media, text = embeddings["media"], embeddings["text"]
        if self.group is not None:
            text = gather_rows(text.float(), compared.counts, self.group)[compared.chosen].to(media.dtype)
        similarity = (media.flatten(0, 1) @ text.T).view(len(media), -1, len(text)).amax(1).float()
        compares = cast(ComparesMedia, system)
        logits = compares.logit_scale.exp() * similarity
        if compares.logit_bias is not None:
            logits = logits + compares.logit_bias
        answer = compared.belongs.float()
        loss = F.binary_cross_entropy_with_logits(logits, answer, reduction="sum")
        return LossTerms({"contrastive": loss}, {"contrastive": answer.sum()})


@dataclass(frozen=True)
class Comparison:
    """Which wordings a rank's media are compared with.

    Shapes: `belongs` [N, texts] bool, this rank's media against the wordings of all ranks; `rows` the rows of this rank whose
    embeddings it computes, the first of each wording; `counts` how many of these each rank has, and `chosen` [texts] which of
    all of them stands for each wording.
    """

    belongs: Tensor
    rows: Tensor
    counts: list[int]
    chosen: Tensor


def comparison(batch: MultimodalBatch, group: ProcessGroup | None = None) -> Comparison:
    """Every medium of this rank against every wording of all ranks of a group, or of this batch alone."""
    words = batch.main.tokens.masked_fill(batch.main.segment == 0, -1)
    device = words.device
    of_row = [0] * len(words)
    for sample in batch.samples:
        of_row[sample.row] = _number(sample.group or f"{sample.source}:{sample.id}")
    groups = torch.tensor(of_row, device=device)
    wording, rows = _first_of_each(words)
    counts, chosen = [len(rows)], torch.arange(len(rows), device=device)
    every_wording, every_group, first = wording, groups, 0
    if group is not None:
        lengths = row_counts(len(words), group, device)
        longest = max(row_counts(words.shape[1], group, device))
        padded = F.pad(words, (0, longest - words.shape[1]), value=-1)
        told = every_row(torch.cat([groups[:, None], padded], 1), lengths, group)
        every_group, (every_wording, firsts) = told[:, 0], _first_of_each(told[:, 1:])
        first = sum(lengths[: torch.distributed.get_rank(group)])
        counts = row_counts(len(rows), group, device)
        embedded = every_row(first + rows[:, None], counts, group).squeeze(1)
        order = embedded.argsort()
        chosen = order[torch.searchsorted(embedded[order], firsts)]
    numbers, of_group = torch.unique(every_group, return_inverse=True)
    says = torch.zeros(len(numbers), int(every_wording.max()) + 1, dtype=torch.bool, device=device)
    says[of_group, every_wording] = True
    media = next(iter(batch.media.values()))
    items = torch.tensor([first + batch.samples[i].row for i in media.item_sample.tolist()], device=device)
    return Comparison(says[of_group[items]], rows, counts, chosen)


def _number(name: str) -> int:
    """A group's name as a number that all ranks give it."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


def _first_of_each(words: Tensor) -> tuple[Tensor, Tensor]:
    """The number of each row's wording, [B], and the first row of each wording."""
    unique, wording = torch.unique(words, dim=0, return_inverse=True)
    first = torch.full((len(unique),), len(words), device=words.device)
    order = torch.arange(len(words), device=words.device)
    return wording, first.scatter_reduce(0, wording, order, "amin")


def _rows(text: TextSide, rows: Tensor) -> TextSide:
    """Some rows of a text."""
    return TextSide(text.tokens[rows], text.order[rows], text.segment[rows], text.positions[rows], text.modality[rows])
