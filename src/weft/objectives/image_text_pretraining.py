"""The three losses of BLIP-2's first stage as one: contrast, matching and generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from weft.core.batch import MultimodalBatch
from weft.core.interfaces import Objective, System
from weft.core.output import LossTerms
from weft.objectives.image_grounded_generation import ImageGroundedGeneration
from weft.objectives.image_text_contrastive import ImageTextContrastive, compared
from weft.objectives.image_text_matching import ImageTextMatching

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class ImageTextPretraining(Objective):
    """Image-text contrast, matching and generation, each with weight 1.

    Media are encoded once, and the similarities of the contrast choose the negatives of the matching.
    Terms "contrast", "matching" and "generation", each over its own weight. Source: BLIP-2, arXiv:2301.12597.
    """

    additive: ClassVar[bool] = False

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        contrast: ImageTextContrastive.Config = ImageTextContrastive.Config()
        matching: ImageTextMatching.Config = ImageTextMatching.Config()
        generation: ImageGroundedGeneration.Config = ImageGroundedGeneration.Config()

        def build(self) -> ImageTextPretraining:
            return ImageTextPretraining(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.contrast = config.contrast.build()
        self.matching = config.matching.build()
        self.generation = config.generation.build()

    def across(self, group: ProcessGroup) -> None:
        self.contrast.across(group)
        self.matching.across(group)

    def weights(self, batch: MultimodalBatch) -> dict[str, Tensor]:
        return self.contrast.weights(batch) | self.matching.weights(batch) | self.generation.weights(batch)

    def forward(self, system: System, batch: MultimodalBatch) -> LossTerms:
        media = system.encode(batch)
        comparison = compared(system, batch, media, self.contrast.group)
        terms = (
            self.contrast.of(comparison, batch),
            self.matching.of(system, batch, media, comparison),
            self.generation.of(system, batch, media),
        )
        return LossTerms({name: total for part in terms for name, total in part.sums.items()}, self.weights(batch))

    def after_step(self, system: System) -> None:
        self.matching.after_step(system)
