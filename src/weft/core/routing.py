"""Which tokens go through the experts of another modality than text."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class Places(NamedTuple):
    """Flat indices into the [B * T] tokens: the text's, the visual ones, and where each token stands in both together."""

    text: Tensor
    visual: Tensor
    back: Tensor


class Routing:
    """The expert of each token of a batch, found once for all layers.

    Shapes: `visual` [B, T] bool, True for a token of the visual expert; every other goes through the layer itself.
    """

    def __init__(self, visual: Tensor) -> None:
        self.visual = visual

    @cached_property
    def places(self) -> Places:
        """Where the tokens of each expert stand. It looks at the data, once."""
        flat = self.visual.flatten()
        visual = flat.nonzero().squeeze(1)
        text = (~flat).nonzero().squeeze(1)
        return Places(text, visual, torch.cat((text, visual)).argsort())

    def of(self, index: Tensor) -> Routing:
        """The routing of one token a row. Shapes: index [B]."""
        return Routing(self.visual.gather(1, index[:, None]))
