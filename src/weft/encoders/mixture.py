"""Mixture of Features: two image encoders over the same picture, arXiv:2401.06209."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from weft.core.catalogue import parts
from weft.core.errors import ConfigError
from weft.core.interfaces import ModalityEncoder
from weft.core.layout import MediaLayout
from weft.core.media import MediaFeatures

Channels = tuple[float, float, float]
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Mixture(ModalityEncoder):
    """Two encoders see one picture on one grid; their features are added, or laid side by side on channels.

    Side by side they are for the projector `Interleaved`, which gives each encoder's features a token of their own.

    Shapes: units [N, 3, H, W] -> values [N, L, C], with C the width of both (added) or the sum of the widths (side by side).
    Source: Mixture of Features, arXiv:2401.06209.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ModalityEncoder.Config):
        """`alpha` None lays the features side by side, the first's channels before the second's; a number adds them as
        (1 - alpha) * first + alpha * second.

        Units come normalised by `mean` and `std`, which are the first encoder's; before the second they are renormalised to
        `second_mean` and `second_std`, so that each encoder sees pictures as it was trained. The published code leaves this
        step out and shows DINOv2 the pixels of CLIP: set the second's to the first's for its numbers.
        """

        first: ModalityEncoder.Config
        second: ModalityEncoder.Config
        alpha: float | None = None
        mean: Channels = CLIP_MEAN
        std: Channels = CLIP_STD
        second_mean: Channels = IMAGENET_MEAN
        second_std: Channels = IMAGENET_STD

        def __post_init__(self) -> None:
            pair = f"{self.first.part_name} and {self.second.part_name}"
            if (self.first.modality, self.second.modality) != ("image", "image"):
                raise ConfigError(f"a Mixture takes two image encoders, got {pair}")
            if self.first.unit_shape != self.second.unit_shape:
                raise ConfigError(
                    f"{pair} of a Mixture take pictures of {self.first.unit_shape} and {self.second.unit_shape}; "
                    "give both the same image size"
                )
            if self.first.layout() != self.second.layout():
                raise ConfigError(
                    f"{pair} of a Mixture have the grids {self.first.layout()} and {self.second.layout()}; "
                    "choose an image size at which their grids agree"
                )
            if self.alpha is not None and not 0 <= self.alpha <= 1:
                raise ConfigError(f"a Mixture's alpha is the second encoder's share, from 0 to 1, got {self.alpha}")
            if self.alpha is not None and self.first.output_width != self.second.output_width:
                raise ConfigError(
                    f"features of widths {self.first.output_width} ({self.first.part_name}) and {self.second.output_width} "
                    f"({self.second.part_name}) cannot be added; leave alpha out to lay them side by side"
                )
            if min(*self.std, *self.second_std) <= 0:
                raise ConfigError(f"deviations of pixels are above 0, got std {self.std} and second_std {self.second_std}")

        def build(self) -> Mixture:
            return Mixture(self)

        @property
        def output_width(self) -> int:
            widths = self.first.output_width, self.second.output_width
            return sum(widths) if self.alpha is None else widths[0]

        @property
        def unit_shape(self) -> tuple[int, ...]:
            return self.first.unit_shape

        def layout(self) -> MediaLayout:
            return self.first.layout()

        @classmethod
        def tiny(cls) -> Self:
            return cls(first=_config("clip_vision").tiny(), second=_config("dinov2").tiny())

        @classmethod
        def sizes(cls) -> Mapping[str, Self]:
            """The published pair, at the size of the released code (336) and at the paper's (224)."""
            clip, dinov2 = _config("clip_vision").sizes(), _config("dinov2").sizes()["l-14"]
            return {
                "l-14": cls(first=clip["l-14"], second=replace(dinov2, image_size=224)),
                "l-14-336": cls(first=clip["l-14-336"], second=replace(dinov2, image_size=336)),
            }

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.first = config.first.build()
        self.second = config.second.build()

    def for_second(self, units: Tensor) -> Tensor:
        """The picture as the second encoder takes it: the same colours under its mean and deviation."""
        c = self.config
        if (c.mean, c.std) == (c.second_mean, c.second_std):
            return units
        channels = zip(units.unbind(1), c.mean, c.std, c.second_mean, c.second_std, strict=True)
        return torch.stack([(x * std + (mean - mean_2)) / std_2 for x, mean, std, mean_2, std_2 in channels], 1)

    def forward(self, units: Tensor, unit_item: Tensor, layout: tuple[MediaLayout, ...]) -> MediaFeatures:
        first = self.first(units, unit_item, layout)
        second = self.second(self.for_second(units), unit_item, layout)
        alpha = self.config.alpha
        if alpha is None:
            return replace(first, values=torch.cat((first.values, second.values), -1))
        return replace(first, values=(1 - alpha) * first.values + alpha * second.values)


def _config(name: str) -> Any:
    """The config class of an encoder that the published pairs name; encoders do not import each other."""
    return vars(parts("encoders")[name])["Config"]
