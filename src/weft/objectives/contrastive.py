"""Contrastive objectives over a dual encoder: CLIP's softmax and SigLIP's sigmoid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.core.batch import MultimodalBatch
from weft.core.interfaces import Objective, System
from weft.core.output import LossTerms


class ComparesMedia(Protocol):
    """What a contrastive objective asks of a system."""

    logit_scale: nn.Parameter
    logit_bias: nn.Parameter | None


def paired_embeddings(system: System, batch: MultimodalBatch) -> tuple[Tensor, Tensor]:
    """Media and text embeddings in the same order, [N, E] each: row i of one belongs to row i of the other."""
    output = system(batch)
    media = output.embeddings["media"]
    stream = next(iter(batch.media.values()))
    rows = torch.tensor([batch.samples[i].row for i in stream.item_sample.tolist()], device=media.device)
    return media, output.embeddings["text"][rows]


class SoftmaxContrastive(Objective):
    """CLIP's symmetric cross entropy over in-batch negatives.

    Term "contrastive": the sum over pairs of (image-to-text + text-to-image cross entropy) / 2. The scale is clamped to
    `max_scale` after every step. Source: arXiv:2103.00020.
    """

    additive: ClassVar[bool] = False

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        max_scale: float = 100.0

        def build(self) -> SoftmaxContrastive:
            return SoftmaxContrastive(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def weights(self, batch: MultimodalBatch) -> dict[str, Tensor]:
        media = next(iter(batch.media.values()))
        return {"contrastive": torch.tensor(float(len(media.layout)), device=media.units.device)}

    def forward(self, system: System, batch: MultimodalBatch) -> LossTerms:
        media, text = paired_embeddings(system, batch)
        logits = cast(ComparesMedia, system).logit_scale.exp() * (media.float() @ text.float().T)
        pair = torch.arange(len(logits), device=logits.device)
        total = (F.cross_entropy(logits, pair, reduction="sum") + F.cross_entropy(logits.T, pair, reduction="sum")) / 2
        return LossTerms({"contrastive": total}, self.weights(batch))

    @torch.no_grad()
    def after_step(self, system: System) -> None:
        cast(ComparesMedia, system).logit_scale.clamp_(max=math.log(self.config.max_scale))


class SigmoidContrastive(Objective):
    """SigLIP's loss: every pair of the batch is its own yes-or-no question; summed over pairs, divided by the batch size only.

    Term "contrastive". Source: arXiv:2303.15343.
    """

    additive: ClassVar[bool] = False

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        def build(self) -> SigmoidContrastive:
            return SigmoidContrastive(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def weights(self, batch: MultimodalBatch) -> dict[str, Tensor]:
        media = next(iter(batch.media.values()))
        return {"contrastive": torch.tensor(float(len(media.layout)), device=media.units.device)}

    def forward(self, system: System, batch: MultimodalBatch) -> LossTerms:
        media, text = paired_embeddings(system, batch)
        compares = cast(ComparesMedia, system)
        logits = compares.logit_scale.exp() * (media.float() @ text.float().T)
        if compares.logit_bias is not None:
            logits = logits + compares.logit_bias
        sign = 2 * torch.eye(len(logits), device=logits.device) - 1
        return LossTerms({"contrastive": -F.logsigmoid(sign * logits).sum()}, self.weights(batch))
