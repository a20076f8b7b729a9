"""What a stage predicts where its data says nothing about it."""

from __future__ import annotations

from dataclasses import dataclass

from weft.core import config
from weft.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ClusterTargets(config.Config):
    """k-means over frames, as many clusters as the stage's system tells apart.

    `stage` names the earlier stage whose encoder gives the frames' features, after `layer` blocks; None: MFCC of the waveform.
    `share` of the recordings, drawn by `seed`, are clustered; all are labelled.
    Source: HuBERT, arXiv:2106.07447.
    """

    stage: str | None = None
    layer: int = 6
    share: float = 1.0
    num_starts: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"cluster targets: share is a part of the recordings, above 0 and at most 1, got {self.share}")
