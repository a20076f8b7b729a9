"""Image-grounded text generation: the text is written from left to right by what the queries hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from weft.core.batch import IGNORE, MultimodalBatch
from weft.core.interfaces import Objective, System
from weft.core.media import MediaFeatures
from weft.core.output import LossTerms
from weft.core.query_text_rules import multimodal_causal
from weft.objectives.image_text_contrastive import own_pairs


class ImageGroundedGeneration(Objective):
    """Cross entropy of the tokens that carry a target, smoothed over the vocabulary; text sees all queries and itself so far,
    and begins with the system's start token.

    Term "generation": the sum of token losses over the number of tokens. `chunk` bounds how many logits rows exist at a time.
    Source: BLIP-2, arXiv:2301.12597.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        label_smoothing: float = 0.1
        chunk: int = 4096

        def build(self) -> ImageGroundedGeneration:
            return ImageGroundedGeneration(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def weights(self, batch: MultimodalBatch) -> dict[str, Tensor]:
        return {"generation": (batch.main.targets["text"] != IGNORE).sum().float()}

    def forward(self, system: System, batch: MultimodalBatch) -> LossTerms:
        return self.of(system, batch, system.encode(batch))

    def of(self, system: System, batch: MultimodalBatch, media: Mapping[str, MediaFeatures]) -> LossTerms:
        """The loss where the media are encoded already."""
        written = written_pairs(system.config, batch)
        targets = written.main.targets["text"].flatten()
        places = (targets != IGNORE).nonzero().squeeze(1)
        output = system(written, media)
        total = output.hidden.sum().float() * 0.0  # keeps the graph whole where nothing carries a target
        for chunk in places.split(self.config.chunk):
            logits = output.logits("text", chunk).float()
            smoothing = self.config.label_smoothing
            total = total + F.cross_entropy(logits, targets[chunk], reduction="sum", label_smoothing=smoothing)
        return LossTerms({"generation": total}, self.weights(batch))


def written_pairs(config: Any, batch: MultimodalBatch) -> MultimodalBatch:
    """Every sample as it is written: causal behind the queries, with the start token in the first place."""
    arranged = batch.arrange(own_pairs(batch), *multimodal_causal(0, batch.main.segment > 0).queries[:2])
    tokens = arranged.main.tokens.clone()
    tokens[:, 0] = config.start_token
    return replace(arranged, main=replace(arranged.main, tokens=tokens))
