"""Image-text matching: do a medium and a text belong together, asked of true pairs and of the hardest false ones."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.core.batch import MediaBatch, MultimodalBatch, SampleRef, TextSide
from weft.core.errors import DataError
from weft.core.interfaces import Objective, System
from weft.core.media import MediaFeatures
from weft.core.output import LossTerms
from weft.core.query_text_rules import bidirectional
from weft.objectives.exchange import every_row, gather_rows, row_counts
from weft.objectives.image_text_contrastive import Comparison, compared, number_of_pairs, own_pairs

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class ImageTextMatching(Objective):
    """Cross entropy of "match" or "no match" at the mean over queries of their logits, everyone seeing everyone.

    Each of n pairs is asked three times: as it is, its text with another medium, and its medium with another text. Negatives
    are drawn among the pairs of all ranks by the softmax of their similarities, the own pair left out. A draw depends on the
    seed, the step and the sample alone: the same on any number of ranks and after a resume; in evaluation it is that of step 0.
    Term "matching": the sum over the 3 n examples, over their number.
    Source: BLIP-2, arXiv:2301.12597; hard negatives, ALBEF, arXiv:2107.07651.
    """

    additive: ClassVar[bool] = False
    step: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        seed: int = 0

        def build(self) -> ImageTextMatching:
            return ImageTextMatching(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.group: ProcessGroup | None = None
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def across(self, group: ProcessGroup) -> None:
        self.group = group

    def weights(self, batch: MultimodalBatch) -> dict[str, Tensor]:
        return {"matching": 3 * number_of_pairs(batch)}

    def forward(self, system: System, batch: MultimodalBatch) -> LossTerms:
        media = system.encode(batch)
        with torch.no_grad():
            comparison = compared(system, batch, media, self.group)
        return self.of(system, batch, media, comparison)

    def of(
        self, system: System, batch: MultimodalBatch, media: Mapping[str, MediaFeatures], comparison: Comparison
    ) -> LossTerms:
        """The loss where the media are encoded and the pairs compared already."""
        every, features = (batch, media) if self.group is None else of_all_ranks(batch, media, self.group)
        pairs, label = self.examples(batch, comparison)
        asked = every.arrange(pairs, *bidirectional(0, every.main.segment > 0).queries[:2])
        output = system(asked, features)
        logits = output.heads["matching"](output.embeddings["queries"]).float().mean(1)
        return LossTerms({"matching": F.cross_entropy(logits, label, reduction="sum")}, self.weights(batch))

    def examples(self, batch: MultimodalBatch, comparison: Comparison) -> tuple[Tensor, Tensor]:
        """Which text is asked with which medium, by their numbers among the pairs of all ranks, and whether they match.

        Shapes: pairs [3 n, 2], label [3 n]: the true pairs, then other media, then other texts.
        """
        own, chance = comparison.own, self.chance(batch)
        other_media = hard_negatives(comparison.shown, own, chance[:, 0])
        other_texts = hard_negatives(comparison.told, own, chance[:, 1])
        text, medium = torch.cat((own, own, other_texts)), torch.cat((own, other_media, own))
        return torch.stack((text, medium), 1), (torch.arange(len(text), device=own.device) < len(own)).long()

    def chance(self, batch: MultimodalBatch) -> Tensor:
        """Two numbers in [0, 1) for every sample: [n, 2]."""
        step = int(self.step) if self.training else 0
        drawn = torch.empty(len(batch.samples), 2)
        for row, sample in zip(drawn, batch.samples, strict=True):
            name = f"{self.config.seed}/{step}/{sample.source}/{sample.id}"
            row.copy_(torch.rand(2, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()))))
        return drawn.to(batch.main.tokens.device)

    @torch.no_grad()
    def after_step(self, system: System) -> None:
        self.step += 1


@torch.no_grad()
def hard_negatives(similarity: Tensor, own: Tensor, chance: Tensor) -> Tensor:
    """A candidate of each row, drawn by the softmax of its similarities; never its own.

    Shapes: similarity [n, B], own [n], chance [n] in [0, 1) -> [n]. Raises: DataError where there is no other candidate.
    """
    if similarity.shape[1] < 2:
        raise DataError("matching needs two pairs in a batch or more, to have a negative for each; raise batch_size")
    others = similarity.double().scatter(1, own[:, None], float("-inf"))
    share = others.softmax(1).cumsum(1)
    # the first whose share reaches past the draw: one of no share, such as the own pair, reaches no further than the one before
    return torch.searchsorted(share, chance.double()[:, None] * share[:, -1:], right=True).squeeze(1)


def of_all_ranks(
    batch: MultimodalBatch, media: Mapping[str, MediaFeatures], group: ProcessGroup
) -> tuple[MultimodalBatch, dict[str, MediaFeatures]]:
    """The pairs of all ranks, one a row and without targets, and their media's features, of one length on all ranks."""
    own = batch.arrange(own_pairs(batch), batch.main.order, batch.main.segment)
    device = own.main.tokens.device
    counts = row_counts(len(own.samples), group, device)
    longest = max(row_counts(own.main.tokens.shape[1], group, device))
    sides = (own.main.tokens, own.main.order, own.main.segment, own.main.positions, own.main.modality)
    text = torch.stack([F.pad(side, (0, longest - side.shape[1])) for side in sides], 1)
    text = every_row(text.flatten(1), counts, group).unflatten(1, (len(sides), longest))
    number = torch.arange(len(text), device=device)
    spans = torch.zeros(len(text), 5, dtype=torch.long, device=device)
    spans[:, 0] = spans[:, 2] = number
    streams, features = {}, {}
    for stream in batch.media:
        shown = media[stream].of_items(own.shown(stream))
        values = gather_rows(shown.values.flatten(1), counts, group).unflatten(1, shown.values.shape[1:])
        real = torch.ones(shown.values.shape[:2], device=device) if shown.valid is None else shown.valid
        valid = every_row(real.long(), counts, group).bool()
        layout = shown.layout[:1] * len(text)
        features[stream] = MediaFeatures(values, number, layout, None if bool(valid.all()) else valid)
        streams[stream] = MediaBatch(values, number, layout, spans, number)
    samples = tuple(SampleRef(row, int(first), "", str(row)) for row, first in enumerate(text[:, 2, 0].tolist()))
    return replace(own, main=TextSide(*text.unbind(1)), media=streams, samples=samples), features
