"""Image-text contrast over queries: a medium is as near to a text as the nearest of its queries is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.core.batch import MultimodalBatch
from weft.core.interfaces import Objective, System
from weft.core.media import MediaFeatures
from weft.core.output import LossTerms
from weft.core.query_text_rules import unimodal
from weft.objectives.exchange import gather_rows, row_counts

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class ComparesQueries(Protocol):
    """What this objective asks of a system: embeddings "media" [B, K, E] and "text" [B, E], and what divides their cosines."""

    temperature: nn.Parameter


@dataclass(frozen=True)
class Comparison:
    """The cosines between this rank's pairs and those of all ranks, at the best query, over the temperature.

    Shapes: `told` [n, B] of this rank's media with every text, `shown` [n, B] of its texts with every medium; its pair i is
    pair `first` + i of all.
    """

    told: Tensor
    shown: Tensor
    first: int

    @property
    def own(self) -> Tensor:
        """Where each row's own pair stands: [n]."""
        return torch.arange(self.first, self.first + len(self.told), device=self.told.device)


class ImageTextContrastive(Objective):
    """Symmetric cross entropy over in-batch negatives, queries and text blind to each other.

    Term "contrast": the sum over pairs of (medium-to-text + text-to-medium cross entropy) / 2, the targets smoothed over all
    candidates. Source: BLIP-2, arXiv:2301.12597.
    """

    additive: ClassVar[bool] = False

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        label_smoothing: float = 0.1

        def build(self) -> ImageTextContrastive:
            return ImageTextContrastive(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.group: ProcessGroup | None = None

    def across(self, group: ProcessGroup) -> None:
        self.group = group

    def weights(self, batch: MultimodalBatch) -> dict[str, Tensor]:
        return {"contrast": number_of_pairs(batch)}

    def forward(self, system: System, batch: MultimodalBatch) -> LossTerms:
        return self.of(compared(system, batch, system.encode(batch), self.group), batch)

    def of(self, comparison: Comparison, batch: MultimodalBatch) -> LossTerms:
        """The loss of what was compared."""
        total = sum(
            F.cross_entropy(logits, comparison.own, reduction="sum", label_smoothing=self.config.label_smoothing)
            for logits in (comparison.told, comparison.shown)
        )
        return LossTerms({"contrast": cast(Tensor, total) / 2}, self.weights(batch))


def compared(
    system: System, batch: MultimodalBatch, media: Mapping[str, MediaFeatures], group: ProcessGroup | None = None
) -> Comparison:
    """This rank's pairs, each side read by itself, against those of all ranks of a group."""
    output = system(batch.arrange(own_pairs(batch), *unimodal(0, batch.main.segment > 0).queries[:2]), media)
    queries, text = output.embeddings["media"], output.embeddings["text"]
    every_medium, every_text, first = queries, text, 0
    with torch.autocast(text.device.type, enabled=False):  # bf16 has no room for cosines over a small temperature
        if group is not None:
            counts = row_counts(len(text), group, text.device)
            both = gather_rows(torch.cat((queries.flatten(1), text), 1), counts, group)
            every_medium = both[:, : -text.shape[1]].unflatten(1, queries.shape[1:])
            every_text, first = both[:, -text.shape[1] :], sum(counts[: torch.distributed.get_rank(group)])
        temperature = cast(ComparesQueries, system).temperature.float()
        told = torch.einsum("nke,be->nkb", queries, every_text).amax(1) / temperature
        shown = torch.einsum("bke,ne->nkb", every_medium, text).amax(1) / temperature
    return Comparison(told, shown, first)


def own_pairs(batch: MultimodalBatch) -> Tensor:
    """Every sample's text with its own medium: [n, 2]."""
    return torch.arange(len(batch.samples), device=batch.main.tokens.device)[:, None].expand(-1, 2)


def number_of_pairs(batch: MultimodalBatch) -> Tensor:
    return torch.tensor(float(len(batch.samples)), device=batch.main.tokens.device)
