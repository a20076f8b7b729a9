"""Contrastive objectives over a dual encoder: CLIP's softmax and SigLIP's sigmoid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from weft.core.batch import MultimodalBatch
from weft.core.errors import ConfigError
from weft.core.interfaces import Objective, System
from weft.core.output import LossTerms
from weft.objectives.pair_losses import sigmoid_pair_loss, softmax_pair_loss

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class ComparesMedia(Protocol):
    """What a contrastive objective asks of a system."""

    logit_scale: nn.Parameter
    logit_bias: nn.Parameter | None


def paired_embeddings(system: System, batch: MultimodalBatch) -> tuple[Tensor, Tensor]:
    """Media and text embeddings in fp32 and in the same order, [N, E] each: row i of one belongs to row i of the other."""
    output = system(batch)
    media = output.embeddings["media"]
    stream = next(iter(batch.media.values()))
    rows = torch.tensor([batch.samples[i].row for i in stream.item_sample.tolist()], dtype=torch.long, device=media.device)
    return media.float(), output.embeddings["text"][rows].float()


def text_logit_scale(system: System) -> nn.Parameter | None:
    """The scale of text-to-media where a system has one of its own, as LAION's CLAP does (arXiv:2211.06687)."""
    return getattr(system, "text_logit_scale", None)


class SoftmaxContrastive(Objective):
    """CLIP's symmetric cross entropy over in-batch negatives; the two directions may have scales of their own.

    Term "contrastive": the sum over pairs of (image-to-text + text-to-image cross entropy) / 2. The scale is clamped to
    `max_scale` after every step. `chunk` rows of logits exist at a time. Source: arXiv:2103.00020.
    """

    additive: ClassVar[bool] = False

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        max_scale: float = 100.0
        chunk: int = 1024

        def __post_init__(self) -> None:
            _check_chunk(self.chunk)

        def build(self) -> SoftmaxContrastive:
            return SoftmaxContrastive(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.group: ProcessGroup | None = None

    def weights(self, batch: MultimodalBatch) -> dict[str, Tensor]:
        return _number_of_pairs(batch)

    def across(self, group: ProcessGroup) -> None:
        self.group = group

    def forward(self, system: System, batch: MultimodalBatch) -> LossTerms:
        media, text = paired_embeddings(system, batch)
        with torch.autocast(media.device.type, enabled=False):  # at a scale of 100, bf16 would round logits to halves
            scale = cast(ComparesMedia, system).logit_scale.float().exp()
            own = text_logit_scale(system)
            text_scale = None if own is None else own.float().exp()
            total = softmax_pair_loss(media, text, scale, text_scale, chunk=self.config.chunk, group=self.group)
        return LossTerms({"contrastive": total}, self.weights(batch))

    @torch.no_grad()
    def after_step(self, system: System) -> None:
        largest = math.log(self.config.max_scale)
        cast(ComparesMedia, system).logit_scale.clamp_(max=largest)
        if (own := text_logit_scale(system)) is not None:
            own.clamp_(max=largest)


class SigmoidContrastive(Objective):
    """SigLIP's loss: every pair of the batch is its own yes-or-no question; summed over pairs, divided by the batch size only.

    Term "contrastive". `chunk` rows of logits exist at a time. Source: arXiv:2303.15343.
    """

    additive: ClassVar[bool] = False

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        chunk: int = 1024

        def __post_init__(self) -> None:
            _check_chunk(self.chunk)

        def build(self) -> SigmoidContrastive:
            return SigmoidContrastive(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.group: ProcessGroup | None = None

    def weights(self, batch: MultimodalBatch) -> dict[str, Tensor]:
        return _number_of_pairs(batch)

    def across(self, group: ProcessGroup) -> None:
        self.group = group

    def forward(self, system: System, batch: MultimodalBatch) -> LossTerms:
        media, text = paired_embeddings(system, batch)
        compares = cast(ComparesMedia, system)
        with torch.autocast(media.device.type, enabled=False):
            scale = compares.logit_scale.float().exp()
            bias = torch.zeros_like(scale) if compares.logit_bias is None else compares.logit_bias.float()
            total = sigmoid_pair_loss(media, text, scale, bias, chunk=self.config.chunk, group=self.group)
        return LossTerms({"contrastive": total}, self.weights(batch))


def _number_of_pairs(batch: MultimodalBatch) -> dict[str, Tensor]:
    media = next(iter(batch.media.values()))
    return {"contrastive": torch.tensor(float(len(media.layout)), device=media.units.device)}


def _check_chunk(chunk: int) -> None:
    if chunk < 1:
        raise ConfigError(f"a contrastive objective compares at least 1 row at a time, got chunk={chunk}")
