"""Masked prediction: say of the features that were hidden to which cluster they belong."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.core.batch import IGNORE, MediaBatch, MultimodalBatch
from weft.core.errors import DataError
from weft.core.interfaces import Objective, System
from weft.core.output import LossTerms


class MaskedPrediction(Objective):
    """Cross entropy over clusters at the masked features, and a penalty that keeps the convolutions' output small.

    Terms: "prediction", the sum of the frames' weighted losses over the number of frames that have a weight; "feature_penalty",
    `feature_penalty` times the mean square of the convolutions' output over the real frames.
    A unit's mask depends on the seed, the step and the sample alone: the same before and in the forward, on any machine, after
    a resume; in evaluation it is the one of step 0.
    Source: HuBERT, arXiv:2106.07447.
    """

    step: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        """`mask_probability` of the frames would be masked if spans of `span` frames never overlapped."""

        stream: str = "audio"
        mask_probability: float = 0.8
        span: int = 10
        least_spans: int = 2
        masked_weight: float = 1.0
        unmasked_weight: float = 0.0
        feature_penalty: float = 10.0
        seed: int = 0

        def build(self) -> MaskedPrediction:
            return MaskedPrediction(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def weights(self, batch: MultimodalBatch) -> dict[str, Tensor]:
        return self._weights(batch, self.masked(batch))

    def _weights(self, batch: MultimodalBatch, masked: Tensor) -> dict[str, Tensor]:
        real = _targets(batch.media[self.config.stream]) != IGNORE
        return {"prediction": (self.frame_weights(batch, masked) > 0).sum().float(), "feature_penalty": real.sum().float()}

    def forward(self, system: System, batch: MultimodalBatch) -> LossTerms:
        c = self.config
        media = batch.media[c.stream]
        targets, masked = _targets(media), self.masked(batch)
        weights = self.frame_weights(batch, masked)
        output = system(replace(batch, media={**batch.media, c.stream: replace(media, masked=masked)}))
        chosen = weights.flatten().nonzero().squeeze(1)
        losses = F.cross_entropy(output.logits("cluster", chosen).float(), targets.flatten()[chosen], reduction="none")
        squares = output.embeddings["convolution"].float().square().mean(-1) * (targets != IGNORE)
        sums = {
            "prediction": torch.dot(losses, weights.flatten()[chosen]),
            "feature_penalty": c.feature_penalty * squares.sum(),
        }
        return LossTerms(sums, self._weights(batch, masked))

    def frame_weights(self, batch: MultimodalBatch, masked: Tensor) -> Tensor:
        """What each frame's loss counts, [N, L]: nothing without a target."""
        c = self.config
        weight = torch.where(masked, c.masked_weight, c.unmasked_weight)
        return weight * (_targets(batch.media[c.stream]) != IGNORE)

    def masked(self, batch: MultimodalBatch) -> Tensor:
        """The frames that are hidden from the encoder at this step, [N, L] bool."""
        c = self.config
        media = batch.media[c.stream]
        targets = _targets(media)
        lengths = (targets != IGNORE).sum(1).tolist()
        step = int(self.step) if self.training else 0
        masks = torch.zeros(targets.shape, dtype=torch.bool)
        items, samples = media.unit_item.tolist(), media.item_sample.tolist()
        for unit, (item, length) in enumerate(zip(items, lengths, strict=True)):
            sample = batch.samples[samples[item]]
            name = f"{c.seed}/{step}/{sample.source}/{sample.id}/{unit - items.index(item)}"
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            masks[unit, :length] = span_mask(length, c.mask_probability, c.span, c.least_spans, generator)
        return masks.to(targets.device)

    @torch.no_grad()
    def after_step(self, system: System) -> None:
        self.step += 1


def span_mask(length: int, probability: float, span: int, least: int, generator: torch.Generator) -> Tensor:
    """A mask of spans that may overlap, [length] bool; what is shorter than a span stays whole.

    Their number is `probability * length / span`, rounded up or down by chance, and at least `least`; no two begin together.
    (The published code then shows frames again until every sample of a batch hides equally many; here a sample's mask does not
    depend on its neighbours.)
    Source: wav2vec 2.0, arXiv:2006.11477.
    """
    mask = torch.zeros(length, dtype=torch.bool)
    starts = length - span + 1
    if starts < 1:
        return mask
    rounded = int(probability * length / span + torch.rand((), generator=generator).item())
    chosen = torch.randperm(starts, generator=generator)[: max(rounded, least)]
    mask[(chosen[:, None] + torch.arange(span)).flatten()] = True
    return mask


def _targets(media: MediaBatch) -> Tensor:
    if media.targets is None:
        raise DataError("masked prediction needs the cluster of every frame; give the media targets, as ClusteredAudio does")
    return media.targets
