"""Next-token prediction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.core.batch import IGNORE, MultimodalBatch
from weft.core.interfaces import Objective, System
from weft.core.output import LossTerms


class NextToken(Objective):
    """Cross entropy of the tokens that carry a target, and logits for no other; of an encoder-decoder its decoder's tokens.

    Term "next_token": the sum of weighted token losses over the sum of token weights. `chunk` bounds how many logits rows exist
    at a time.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        head: str = "text"
        chunk: int = 4096

        def build(self) -> NextToken:
            return NextToken(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def weights(self, batch: MultimodalBatch) -> dict[str, Tensor]:
        targets = batch.written.targets[self.config.head]
        weights = batch.written.weights.get(self.config.head)
        supervised = targets != IGNORE
        total = supervised.sum().float() if weights is None else (weights * supervised).sum().float()
        return {"next_token": total}

    def forward(self, system: System, batch: MultimodalBatch) -> LossTerms:
        head = self.config.head
        targets = batch.written.targets[head].flatten()
        weights = batch.written.weights.get(head)
        positions = (targets != IGNORE).nonzero().squeeze(1)
        output = system(batch)
        total = output.hidden.sum().float() * 0.0  # keeps the graph whole where nothing carries a target
        for chunk in positions.split(self.config.chunk):
            logits = output.logits(head, chunk).float()
            if weights is None:
                total = total + F.cross_entropy(logits, targets[chunk], reduction="sum")
            else:
                losses = F.cross_entropy(logits, targets[chunk], reduction="none")
                total = total + torch.dot(losses, weights.flatten()[chunk].float())
        return LossTerms({"next_token": total}, self.weights(batch))
